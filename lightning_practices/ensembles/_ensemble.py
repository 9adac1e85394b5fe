"""Several models as one module: their joint prediction and its spread."""

from collections.abc import Iterable
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices._arguments import (
    check_choice,
    check_flag,
    check_instance,
    check_listed,
)
from lightning_practices._copies import copy_of
from lightning_practices.ensembles._prediction import MonteCarloPrediction, Summary
from lightning_practices.ensembles._vectorized import (
    VectorizedModels,
    difference,
    has_convolutions,
)
from lightning_practices.ensembles._vote import (
    Outputs,
    Task,
    Vote,
    logits_of,
    mean_logits,
    probabilities_of,
    shares_of_votes,
)

_ONE_BY_ONE = ("cpu",)  # device types on which vectorized members are slower than a loop


class Ensemble(nn.Module):
    r"""Average the predictions of models that were trained separately, or are snapshots of one fit.

    .. math::
        \bar p = \frac{1}{M} \sum_{m=1}^{M} p_m \qquad
        \mathrm{Var}[\bar p] = \frac{1 + (M - 1) \rho}{M} \sigma^2

    where :math:`\rho` is the correlation of the members' errors. If the errors are independent, the
    variance of the mean is :math:`\sigma^2 / M`. Probabilities are averaged, not logits or weights.

    ::

        ensemble = Ensemble([first, second, third], task="multiclass")
        probabilities = ensemble(x)  # (N, C); argmax(1) is the class
        loss = cross_entropy(ensemble.logits(x), y)
        mean, std, entropy, mutual_information = ensemble.predict(x)

    An ensemble is for prediction only. Its members are copies, so further training of the given
    models doesn't change them. They are frozen and stay in eval mode when ``train()`` is called:
    batch norms use running statistics and dropout is off. Gradients flow back to the input. Outputs
    in half precision are averaged in float32.

    **How members run**: one by one, or vectorized, which means one ``torch.func.vmap`` over the
    stacked weights of all members, with fewer and larger kernels. Vectorized members may differ
    only in the values of their parameters and buffers, and their forward may not branch on a
    tensor's values. By default members on the CPU run one by one, which is faster there unless they
    are many and tiny. On other devices they run vectorized if they can and have no convolutions,
    which ``vmap`` would turn into grouped convolutions. Under ``torch.compile`` members always run
    one by one. ``repr`` shows how the members run, and why.

    Sources: lectures S0, S1 and S3; Lakshminarayanan et al., 2017, *Simple and Scalable Predictive
    Uncertainty Estimation using Deep Ensembles*, arXiv:1612.01474.

    Args:
        members: The models. Each returns a tensor, and all return the same shape for the same
            input.
        task: The kind of outputs. ``"multiclass"``: one output per class, ``(N, C, *)`` with C at
            least 2. ``"binary"``: one output per yes-or-no label, ``(N, *)``. ``"regression"``:
            values, ``(N, *)``.
        outputs: Whether members return ``"logits"`` or ``"probabilities"``, as after a softmax or
            sigmoid. For ``"regression"`` leave it out.
        vote: ``"soft"``: the mean of probabilities or values. ``"hard"``: each member votes for its
            most probable class, in ``"binary"`` for yes if its probability is above 1/2.
        vectorize: Whether members run vectorized. Default: as described above.

    Attributes:
        members: The copies of the models, an ``nn.ModuleList``.

    Raises:
        TypeError: If a member is not a module. On a call, if a member doesn't return a tensor of
            floating dtype.
        ValueError: If there are no members, ``task``, ``outputs`` or ``vote`` is not one of the
            values above, or the members differ although ``vectorize=True``. On a call, if an output
            has a wrong shape.

    Example:
        >>> from lightning_practices.ensembles import Ensemble
        >>> members = [nn.Linear(4, 3) for _ in range(5)]
        >>> x = torch.randn(8, 4)
        >>> probabilities = Ensemble(members, task="multiclass")(x)
        >>> mean = torch.stack([member(x).softmax(1) for member in members]).mean(0)
        >>> torch.allclose(probabilities, mean, atol=1e-6)
        True
    """

    def __init__(
        self,
        members: Iterable[nn.Module],
        *,
        task: Task,
        outputs: Outputs = "logits",
        vote: Vote = "soft",
        vectorize: bool | None = None,
    ) -> None:
        super().__init__()
        given = check_listed("members", members, "several modules")
        _check(given, task, outputs, vote)
        if vectorize is not None:
            check_flag("vectorize", vectorize)
        self.task: Task = task
        self.outputs: Outputs = outputs
        self.vote = vote
        self.vectorize = vectorize
        # Each member is copied separately: a tensor that members share needs a copy per member, to
        # be a separate entry of the stack.
        self.members = nn.ModuleList(copy_of(member) for member in given)
        self.members.requires_grad_(False).eval()
        self._obstacle = difference(self.members)  # type: ignore[arg-type]
        if vectorize and self._obstacle:
            raise ValueError(f"vectorize=True, but {self._obstacle}: leave vectorize=None")
        self._vectorized = VectorizedModels(self.members)  # type: ignore[arg-type]

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call each member with the arguments, and return their joint prediction.

        Returns:
            A tensor of the shape of a member's output, float32 or float64. For the ``"soft"`` vote
            it holds mean probabilities or values. For the ``"hard"`` vote it holds the share of
            members that vote for each class, or for yes. If several classes have the same share,
            ``argmax`` returns the first.
        """
        outputs = self._outputs(args, kwargs)
        if self.vote == "hard":
            return shares_of_votes(outputs, self.task, self.outputs)
        return probabilities_of(outputs, self.task, self.outputs).mean(0)

    def logits(self, *args: Any, **kwargs: Any) -> Tensor:
        r"""Return the logits of the mean probabilities, for torch's losses.

        The logits are :math:`\ln \bar p`, for ``"binary"`` :math:`\ln \bar p - \ln (1 - \bar p)`.
        If members return logits, the result doesn't underflow.

        Raises:
            ValueError: If ``vote`` is ``"hard"`` or ``task`` is ``"regression"``.
        """
        if self.task == "regression" or self.vote == "hard":
            raise ValueError(
                f"an ensemble of task={self.task!r} and vote={self.vote!r} has no logits: call it"
                " for values, or for shares of votes"
            )
        return mean_logits(self._outputs(args, kwargs), self.task, self.outputs)

    def predict(self, *args: Any, **kwargs: Any) -> MonteCarloPrediction:
        """Return the mean and the spread of the members' predictions, whatever ``vote`` is.

        The result is that of :func:`monte_carlo_dropout`, with members instead of passes. The
        mutual information is 0 if all members return the same probabilities, however uncertain
        these are. No gradients are recorded.

        Raises:
            ValueError: If the ensemble has only one member.
        """
        if len(self.members) < 2:
            raise ValueError(
                "a spread needs at least two members, got one: call the ensemble to predict"
            )
        with torch.no_grad():
            outputs = self._outputs(args, kwargs)
            summary = Summary(self.task)
            summary.add(logits_of(outputs, self.task, self.outputs))
            return summary.result()

    @override
    def train(self, mode: bool = True) -> Self:
        """Set ``training`` of the ensemble itself; the members stay in eval mode."""
        self.training = mode
        return self

    @override
    def extra_repr(self) -> str:
        reason = self._reason()
        way = f"run one by one: {reason}" if reason else "run vectorized"
        return f"task={self.task!r}, outputs={self.outputs!r}, vote={self.vote!r}, {way}"

    def _reason(self) -> str | None:
        """Return the reason why members run one by one, or ``None`` if they run vectorized."""
        if self.vectorize is False:
            return "vectorize=False"
        if self.vectorize is None:
            if self._obstacle:
                return self._obstacle
            tensor = next(self.members.parameters(), None)
            if tensor is None or tensor.device.type in _ONE_BY_ONE:
                return "it is faster on the CPU"
            if has_convolutions(self.members):
                return "they have convolutions"
        return None

    def _outputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the outputs of all members, stacked in dimension 0."""
        if torch.compiler.is_compiling() or self._reason():
            return self._looped(args, kwargs)
        try:
            outputs = self._vectorized(*args, **kwargs)
        except Exception as error:
            if self.vectorize:
                raise
            looped = self._looped(args, kwargs)  # raises as well if the error is not due to vmap
            self._obstacle = f"vmap can't run them ({type(error).__name__})"
            return looped
        return self._checked(outputs, 1)

    def _looped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        each = [self._checked(member(*args, **kwargs)) for member in self.members]
        shapes = {tuple(output.shape) for output in each}
        if len(shapes) > 1:
            raise ValueError(f"members must return tensors of one shape, got {sorted(shapes)}")
        return torch.stack(each)

    def _checked(self, output: Any, first: int = 0) -> Tensor:
        """Return the output in float32 or wider. ``first`` is the dimension of the samples."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(
                f"each member must return a tensor of floating dtype, got {got}: wrap it in a"
                " module that returns the outputs alone, and no classes"
            )
        shape = tuple(output.shape[first:])
        if self.task == "multiclass" and (len(shape) < 2 or shape[1] < 2):
            raise ValueError(
                "task='multiclass' needs outputs of shape (N, C, *) with C of at least 2, got"
                f" {shape}: one output for each sample is task='binary'"
            )
        return output.to(torch.promote_types(output.dtype, torch.float32))


def _check(members: list[Any], task: str, outputs: str, vote: str) -> None:
    if not members:
        raise ValueError("members has to hold at least one module, but it is empty")
    for member in members:
        check_instance("each of members", member, nn.Module, "a torch.nn.Module")
    check_choice("task", task, get_args(Task))
    check_choice("outputs", outputs, get_args(Outputs))
    check_choice("vote", vote, get_args(Vote))
    if task == "regression" and (outputs != "logits" or vote != "soft"):
        raise ValueError(
            f"task='regression' averages values: outputs={outputs!r} and vote={vote!r} are for"
            " classifiers, leave them out"
        )
