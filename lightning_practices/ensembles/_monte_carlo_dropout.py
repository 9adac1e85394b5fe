"""Monte Carlo dropout: predict several times with dropout on, to measure uncertainty."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_practices._arguments import check_callable, check_choice, check_whole
from lightning_practices._names import check_module
from lightning_practices.ensembles._prediction import MonteCarloPrediction, Summary
from lightning_practices.ensembles._shared_masks import SharedMasks
from lightning_practices.ensembles._vote import Task


def monte_carlo_dropout(
    model: nn.Module,
    batch: Any,
    *,
    task: Task,
    passes: int = 30,
    seed: int = 0,
    max_batch_size: int | None = None,
    forward: Callable[[Any], Tensor] | None = None,
) -> MonteCarloPrediction:
    r"""Predict ``passes`` times with dropout on and all other layers in eval mode.

    .. math::
        \bar p = \frac{1}{T} \sum_{t=1}^{T} p_t \qquad
        \mathrm{H}[p] = -\sum_c p_c \ln p_c \qquad
        \mathrm{I} = \mathrm{H}[\bar p] - \frac{1}{T} \sum_{t=1}^{T} \mathrm{H}[p_t]

    Each pass uses one of the subnetworks that dropout trains. Its masks are drawn once, for a
    single sample, and all samples of all batches share them. For a given ``seed`` the prediction
    for a sample therefore depends, up to rounding, on that sample alone: not on its batch, the
    order, the batch size or the number of processes. The distribution of a sample's mean and spread
    is the same as with separate masks for each sample. The predictions of a pass are correlated
    between samples, as under the posterior. Sequences that are padded to another length get
    different masks.

    These layers and their subclasses drop: torch's dropout layers, torchvision's
    ``StochasticDepth`` and ``DropBlock``, timm's ``DropPath`` and ``DropBlock2d``,
    ``nn.MultiheadAttention`` and this package's layers. Layers with a rate of 0 don't drop. A call
    of ``F.dropout`` in a ``forward`` doesn't drop either, since it can't be found. Batch norms and
    all other layers are in eval mode. Afterwards each module's mode and torch's generators have
    their previous state. No gradients are recorded. Compiled models run in eager mode.

    Sources: lecture S2; Gal and Ghahramani, 2016, *Dropout as a Bayesian Approximation*,
    arXiv:1506.02142; mutual information: Houlsby et al., 2011, arXiv:1112.5745.

    Args:
        model: The model, trained with dropout.
        batch: The argument of the model: a tensor, or lists, tuples and mappings that hold tensors.
            Samples are in dimension 0 of the first tensor, of the output, and of the input of each
            layer that drops.
        task: The kind of outputs. ``"multiclass"``: logits of shape ``(N, C, *)``. ``"binary"``:
            one logit per yes-or-no label, ``(N, *)``. ``"regression"``: values, ``(N, *)``.
        passes: Number of passes, at least 2.
        seed: Seed of the masks.
        max_batch_size: Largest number of samples in one forward call. The batch is repeated to run
            several passes in one call, as far as this number allows. A batch of more samples is not
            split. If a GPU runs out of memory, the number of passes per call is halved. Default:
            one pass per call.
        forward: Function that maps the batch to the outputs. Default: ``model``.

    Returns:
        The mean and the standard deviation, and for classifiers the entropy and the mutual
        information.

    Raises:
        RuntimeError: If no layer of the model drops, or none of these layers was called. If a
            recurrent layer drops between its own layers. If a layer that drops gets an input
            without the samples in dimension 0.
        TypeError: If ``model`` is not a module, there is no tensor in ``batch``, or the output is
            not a tensor of floating dtype.
        ValueError: If ``task``, ``passes`` or ``max_batch_size`` is out of range, the batch is
            empty, or an output has a wrong shape. If the batch is to be repeated, and one of its
            tensors has another size in dimension 0.

    Example:
        >>> from lightning_practices.ensembles import monte_carlo_dropout
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
        >>> x = torch.randn(8, 4)
        >>> prediction = monte_carlo_dropout(model, x, task="multiclass")
        >>> prediction.mean.shape, bool((prediction.std > 0).all())
        (torch.Size([8, 3]), True)
        >>> again = monte_carlo_dropout(model, x[:2], task="multiclass")  # the same masks
        >>> torch.allclose(again.mean, prediction.mean[:2], atol=1e-6)
        True
    """
    check_module(model)
    task, passes, seed, max_batch_size = _checked(task, passes, seed, max_batch_size)
    if forward is not None:
        check_callable("forward", forward, "a function of the batch")
    size = _size(batch)
    masks = SharedMasks(model, seed, size)
    summary = Summary(task)
    at_once = max(1, min(passes, (max_batch_size or size) // size))
    _run(forward or model, batch, masks, summary, passes, at_once)
    _report_unreached(masks.layers, masks.calls)
    return summary.result()


class MonteCarloDropout:
    """The settings of :func:`monte_carlo_dropout`, to be used for many batches.

    Args:
        task: The kind of outputs, see :func:`monte_carlo_dropout`.
        passes: Number of passes, at least 2.
        seed: Seed of the masks.
        max_batch_size: Largest number of samples in one forward call, see
            :func:`monte_carlo_dropout`.

    Raises:
        ValueError: If ``task``, ``passes`` or ``max_batch_size`` is out of range.

    Example:
        >>> from lightning_practices.ensembles import MonteCarloDropout
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
        >>> predict = MonteCarloDropout("multiclass", passes=50)
        >>> mean, std, entropy, mutual_information = predict(model, torch.randn(8, 4))
        >>> mean.shape, bool((mutual_information <= entropy).all())
        (torch.Size([8, 3]), True)
    """

    def __init__(
        self,
        task: Task,
        *,
        passes: int = 30,
        seed: int = 0,
        max_batch_size: int | None = None,
    ) -> None:
        self.task, self.passes, self.seed, self.max_batch_size = _checked(
            task, passes, seed, max_batch_size
        )

    def __call__(
        self, model: nn.Module, batch: Any, forward: Callable[[Any], Tensor] | None = None
    ) -> MonteCarloPrediction:
        """Return the result of :func:`monte_carlo_dropout` for a model and a batch."""
        return monte_carlo_dropout(
            model,
            batch,
            task=self.task,
            passes=self.passes,
            seed=self.seed,
            max_batch_size=self.max_batch_size,
            forward=forward,
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]  # `SharedMasks` sets the stance, which compiled code may not
def _run(
    forward: Callable[[Any], Tensor],
    batch: Any,
    masks: SharedMasks,
    summary: Summary,
    passes: int,
    at_once: int,
) -> None:
    """Add ``passes`` passes to ``summary``, at most ``at_once`` per forward call.

    If memory runs out, the number of passes per call is halved.
    """
    if masks.one_pass_only:
        at_once = 1
    with masks.applied():
        while summary.passes < passes:
            count = min(at_once, passes - summary.passes)
            masks.begin(summary.passes, count)
            try:
                outputs = forward(_repeated(batch, count, masks.size))
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                at_once = count // 2
            else:
                _check_outputs(outputs, summary.task, count * masks.size)
                summary.add(outputs.reshape(count, masks.size, *outputs.shape[1:]))


def _report_unreached(layers: dict[str, nn.Module], calls: Counter[str]) -> None:
    unreached = ", ".join(name for name in layers if not calls[name])
    if not calls.total():
        raise RuntimeError(
            f"no layer that drops was called ({unreached}): either the forward doesn't run this"
            " model, or it doesn't call its layers as modules"
        )
    if unreached:
        warnings.warn(
            f"these layers drop in training but were not called, and add no spread: {unreached}",
            stacklevel=3,
        )


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in ``batch`` that have at least one dimension."""
    if isinstance(batch, Tensor) and batch.dim():
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)


def _size(batch: Any) -> int:
    for tensor in _tensors(batch):
        if tensor.shape[0]:
            return tensor.shape[0]
        raise ValueError(f"the batch is empty: its first tensor has shape {tuple(tensor.shape)}")
    raise TypeError(
        f"got a batch of type {type(batch).__name__} without a tensor of one or more dimensions,"
        " which would tell the number of samples"
    )


def _repeated(batch: Any, count: int, size: int) -> Any:
    """Return ``count`` copies of the batch, one after another in dimension 0."""
    if count == 1:
        return batch
    if isinstance(batch, Tensor) and batch.dim():
        if batch.shape[0] != size:
            raise ValueError(
                f"can't repeat a batch of {size} samples with a tensor of shape"
                f" {tuple(batch.shape)} in it: leave max_batch_size=None"
            )
        return torch.cat([batch] * count)
    if isinstance(batch, Mapping):
        return {key: _repeated(value, count, size) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        items = [_repeated(item, count, size) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def _checked(
    task: Task, passes: int, seed: int, max_batch_size: int | None
) -> tuple[Task, int, int, int | None]:
    if max_batch_size is not None:
        max_batch_size = check_whole("max_batch_size", max_batch_size, 1)
    return (
        check_choice("task", task, get_args(Task)),
        check_whole("passes", passes, 2),  # a standard deviation needs two
        check_whole("seed", seed, None),
        max_batch_size,
    )


def _check_outputs(outputs: object, task: str, size: int) -> None:
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        got = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(
            f"the forward must return a tensor of floating dtype, got {got}: return the outputs"
            " alone, as in forward=lambda batch: model(batch)['logits'], and logits, not classes"
        )
    if not outputs.dim() or outputs.shape[0] != size:
        raise ValueError(
            f"the forward of {size} samples returned a tensor of shape {tuple(outputs.shape)}:"
            " dimension 0 of batch and output must be the samples"
        )
    if task == "multiclass" and (outputs.dim() < 2 or outputs.shape[1] < 2):
        raise ValueError(
            f"task='multiclass' needs logits of shape (N, C, *) with C of at least 2, got"
            f" {tuple(outputs.shape)}: one logit for each sample is task='binary'"
        )
