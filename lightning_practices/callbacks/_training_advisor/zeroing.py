"""Whether gradients are added to those of the step before."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_practices.callbacks._training_advisor.weights import dense

_PARAMETERS = 4  # of an optimizer that are watched
_ELEMENTS = 64  # of each of them


class Zeroing:
    """Follows some gradients of an optimizer from one of its steps to the next.

    If no backward pass in between begins with gradients other than those that the event before left
    behind, they were never zeroed. Comparisons stay on the device until :attr:`verdict` is read.

    Args:
        parameters: The optimizer's parameters, after its step.

    Attributes:
        verdict: A tensor that is true if gradients were not zeroed, once the next step is reached.
        is_over: Whether the verdict is there, or none can be had.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        with_gradient = [p for p in parameters if p.grad is not None and not p.grad.is_sparse]
        spacing = max(1, len(with_gradient) // _PARAMETERS)
        self._parameters = with_gradient[::spacing][:_PARAMETERS]
        self._expected = self._now()
        self._unbroken: Tensor | None = None
        self.verdict: Tensor | None = None
        self.is_over = self._expected is None

    def before_backward(self) -> None:
        """Note whether the gradients are still there."""
        if self.is_over:
            return
        now = self._now()
        if now is None or self._expected is None or now.shape != self._expected.shape:
            self.is_over = True  # they were set to None
            return
        same = (now == self._expected).all() & (now != 0).any()
        self._unbroken = same if self._unbroken is None else self._unbroken & same

    def after_backward(self) -> None:
        """Note the gradients, to which a backward pass may have added."""
        if not self.is_over:
            self._expected = self._now()

    def before_step(self) -> None:
        """Give the verdict: the optimizer is about to step."""
        if not self.is_over:
            self.verdict = self._unbroken
            self.is_over = True

    def _now(self) -> Tensor | None:
        grads: list[Any] = [p.grad for p in self._parameters]
        if not grads or any(grad is None for grad in grads):
            return None
        return torch.cat([dense(grad).reshape(-1)[:_ELEMENTS].float() for grad in grads])
