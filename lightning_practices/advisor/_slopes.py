"""The slopes of a step's loss by an output, far from where the output is."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._small_batches import batch_of, run_with_loss
from lightning_practices.advisor._trace import Call

_FAR = 30.0  # times the largest element of the batch; penalties of outputs are still small there


class Slopes:
    """The gradients of the loss of the first batch by what a call makes, in eval mode.

    Args:
        seen: The observation.
        step: The step in which the call was seen, in eval mode.
        call: The call.

    Attributes:
        constants: The small tensors without a gradient that calls got, each once.
    """

    def __init__(self, seen: Observation, step: Step, call: Call) -> None:
        self._seen = seen
        same = [one for one in step.calls if one.written == call.written]
        self._name, self._place = call.written, same.index(call)
        self.constants: list[Tensor] = []

    def at(self, side: int) -> Tensor | None:
        """Return the gradient, with the output far above what it is for 1, and far below for -1.

        ``None`` if the loss doesn't depend on the output then, or the step fails.
        """
        batch = batch_of(self._seen)
        sizes = [
            float(x.abs().max())
            for x in tree_leaves(batch)
            if isinstance(x, Tensor) and x.is_floating_point() and x.numel()
        ]
        mode = _Moved(self._name, self._place, side * _FAR * (1 + max(sizes, default=0.0)))
        found = run_with_loss(self._seen, batch, mode)
        self.constants = mode.constants
        if found is None or found[1] is None or mode.moved is None:
            return None
        if not found[1].requires_grad or found[1].numel() != 1:
            return None
        (gradient,) = torch.autograd.grad(found[1], mode.moved, allow_unused=True)
        return gradient


_SMALL = 32  # elements of a constant


class _Moved(TorchFunctionMode):
    """Moves what a call makes, and makes it a leaf of the graph."""

    def __init__(self, name: str, place: int, shift: float) -> None:
        super().__init__()
        self._name, self._left, self._shift = name, place, shift
        self.moved: Tensor | None = None
        self.constants: list[Tensor] = []

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(args):
            is_small = isinstance(x, Tensor) and 1 < x.numel() <= _SMALL and not x.requires_grad
            if is_small and all(x is not other for other in self.constants):
                self.constants.append(x)
        if getattr(func, "__name__", "").strip("_") != self._name.strip("_"):
            return result
        self._left -= 1
        if self._left == -1 and isinstance(result, Tensor):
            self.moved = result = (result.detach() + self._shift).requires_grad_()
        return result
