"""Sequences of tokens that a model reads and that its loss has as targets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from typing_extensions import override

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._small_batches import batch_of, run_again
from lightning_practices.advisor._trace import CLASSES, Call, Loss, Value

_IGNORED = -100
_SHORTEST = 4  # positions
_ALL, _SOME = 0.99, 0.9  # shares of equal tokens
_CHANGED = 1e-3  # of the predictions' standard deviation: rounding is far below


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens that a first layer reads, beside the targets of a loss at the same positions.

    Attributes:
        loss: The loss.
        call: The first layer.
        value: Its input.
        read: The tokens that it reads, of shape (samples, positions).
        targets: The targets, of the same shape or with one position less.
        arrange: Brings a tensor of the shape of the loss's target into that of ``targets``.
        is_time_first: Whether the positions are the first dimension of ``value``.
    """

    loss: Loss
    call: Call
    value: Value
    read: Tensor
    targets: Tensor
    arrange: Callable[[Tensor], Tensor]
    is_time_first: bool

    @property
    def kept(self) -> Tensor:
        """Whether the loss counts each position."""
        return self.targets != ignored_by(self.loss)

    @property
    def are_next(self) -> bool:
        """Whether targets are the next tokens, and not the tokens themselves."""
        return self.share(1) >= _ALL and self.share(0) < _SOME

    @property
    def are_same(self) -> bool:
        """Whether targets are the tokens themselves, and not the next ones."""
        return self.share(0) == 1 and self.share(1) < _SOME

    @property
    def are_after_next(self) -> bool:
        """Whether targets are the tokens after the next, and neither these nor nearer ones."""
        return self.share(2) >= _ALL and max(self.share(0), self.share(1)) < _SOME

    def share(self, offset: int) -> float:
        """Return the share of targets that equal the token so many positions later."""
        length = min(self.targets.shape[1], self.read.shape[1] - offset)
        others = self.read[:, offset : offset + length]
        kept, equal = self.kept[:, :length], self.targets[:, :length] == others
        return float(equal[kept].float().mean()) if bool(kept.any()) else 0.0


def ignored_by(loss: Loss) -> int:
    """Return the target that a loss doesn't count."""
    return int(loss.call.get(4, "ignore_index", _IGNORED))


def tokens_of(step: Step) -> Iterator[Tokens]:
    """Yield what first layers read beside the targets of losses over classes at each position."""
    for loss in step.losses:
        target = loss.target.tensor
        if loss.kind not in CLASSES or target is None or target.is_floating_point():
            continue
        for call, value in step.first_layers:
            read = tokens_in(value.tensor)
            layouts = [] if read is None else [(False, read), (True, read.T)]
            for is_time_first, tokens in layouts:
                for arrange in _arrangements(target, tokens):
                    yield Tokens(loss, call, value, tokens, arrange(target), arrange, is_time_first)


def tokens_in(x: Tensor | None) -> Tensor | None:
    """Return tokens of shape (a, b), also of one-hot vectors."""
    if x is None or not x.numel():
        return None
    if x.dim() == 2 and not x.is_floating_point():
        return x
    is_one_hot = x.dim() == 3 and x.shape[2] > 1 and bool(((x == 0) | (x == 1)).all())
    return x.argmax(2) if is_one_hot and bool((x.sum(2) == 1).all()) else None


def _arrangements(target: Tensor, tokens: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the ways to bring targets into the shape of tokens, or one position less."""
    samples, length = tokens.shape
    for count in (length, length - 1):
        if count < _SHORTEST or samples < 2:
            continue
        if tuple(target.shape) == (samples, count):
            yield lambda x: x
        if tuple(target.shape) == (count, samples):
            yield lambda x: x.T
        if tuple(target.shape) == (samples * count,):
            yield lambda x, shape=(samples, count): x.reshape(shape)  # type: ignore[misc]
            yield lambda x, shape=(count, samples): x.reshape(shape).T  # type: ignore[misc]


class Changes:
    """Which predictions change with the tokens that a model reads, in eval mode.

    Args:
        seen: The observation.
        is_meant: Says of which tokens.
    """

    def __init__(self, seen: Observation, is_meant: Callable[[Tokens], bool]) -> None:
        self._seen = seen
        self._batch = batch_of(seen)
        self._is_meant = is_meant
        step = run_again(seen, self._batch)
        self._step = step
        self.tokens = None if step is None else next(filter(is_meant, tokens_of(step)), None)

    def after(self, start: int, stop: int | None = None) -> Tensor | None:
        """Return which predictions change, of shape (samples, positions).

        ``None`` if the step isn't the same when it is repeated, or can't be run.

        Args:
            start: The first position whose token another sample's replaces.
            stop: The position after the last one; ``None`` for all that follow.
        """
        tokens = self.tokens
        if tokens is None or tokens.value.tensor is None:
            return None
        x = tokens.value.tensor.clone()
        sequences = x.transpose(0, 1) if tokens.is_time_first else x
        sequences[:, start:stop] = sequences[:, start:stop].roll(1, dims=0)
        same, changed = self._run(tokens.value.tensor), self._run(x)
        first = self._prediction(self._step)
        if same is None or changed is None or first is None or first.shape != changed.shape:
            return None
        limit = _CHANGED * float(first.std())
        if same.shape != first.shape or bool(((same - first).abs() > limit).any()):
            return None
        classes = 1 if first.dim() > 1 else 0
        return tokens.arrange(((changed - first).abs() > limit).any(dim=classes))

    def of_one_token(self) -> tuple[int, Tensor] | None:
        """Return a middle position, and at which positions predictions change with its token.

        Predictions that the loss doesn't count are left out. ``None`` as for :meth:`after`.
        """
        if self.tokens is None:
            return None
        place = self.tokens.read.shape[1] // 2
        changed = self.after(place, place + 1)
        return None if changed is None else (place, (changed & self.tokens.kept).any(dim=0))

    def _run(self, x: Tensor) -> Tensor | None:
        if self.tokens is None or self._step is None:
            return None
        mode = _Replaced(self._step, self.tokens.call, self.tokens.value, x)
        return self._prediction(run_again(self._seen, self._batch, mode))

    def _prediction(self, step: Step | None) -> Tensor | None:
        if step is None or self.tokens is None or self._step is None:
            return None
        place = self._step.losses.index(self.tokens.loss)
        losses = step.losses
        return losses[place].prediction.tensor if len(losses) > place else None


class _Replaced(TorchFunctionMode):
    """Replaces a tensor that a layer gets.

    Args:
        step: The step in which the layer was seen.
        call: The layer's call in it.
        value: Its input.
        x: The tensor that takes the input's place.
    """

    def __init__(self, step: Step, call: Call, value: Value, x: Tensor) -> None:
        super().__init__()
        same = [one for one in step.calls if one.name == call.name]
        self._name, self._left, self._x = call.name, same.index(call), x
        self._place = next(i for i, one in enumerate(call.inputs) if one is value)

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == self._name:
            if self._left == 0:
                leaves, spec = tree_flatten((args, kwargs))
                places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
                leaves[places[self._place]] = self._x
                args, kwargs = tree_unflatten(leaves, spec)
            self._left -= 1
        return func(*args, **kwargs)
