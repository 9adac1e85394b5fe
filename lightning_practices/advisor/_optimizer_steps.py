"""Watch the steps of optimizers, and whether gradients are cleared between them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_practices.advisor._observation import Updates


class OptimizerSteps:
    """Counts the steps of optimizers, and notes gradients that were not cleared between them.

    Gradients may be cleared in many ways: by the optimizer, by the module, by hand. So the
    gradients are looked at before each backward pass. One optimizer's gradients were cleared if
    they were empty before one of the passes between two of its steps.

    Attributes:
        updates: For each optimizer, what was seen.
        stepped: Places of the optimizers that stepped since the last :meth:`begin`.
        after_step: Is called with each optimizer that has stepped.
    """

    def __init__(self) -> None:
        self.updates: list[Updates] = []
        self.stepped: set[int] = set()
        self.after_step: Callable[[Optimizer], None] = lambda optimizer: None
        self._handles: list[RemovableHandle] = []
        self._optimizers: list[Optimizer] = []
        self._cleared: list[bool | None] = []  # since the last step; None before any backward pass
        self._filled: list[bool] = []  # by a backward pass since the last step

    def watch(self, optimizers: Sequence[Any]) -> None:
        """Watch these optimizers until :meth:`end`."""
        self._optimizers = [one for one in optimizers if isinstance(one, Optimizer)]
        self.updates = [Updates() for _ in self._optimizers]
        self._cleared = [None] * len(self._optimizers)
        self._filled = [False] * len(self._optimizers)
        for place, optimizer in enumerate(self._optimizers):

            def note(*args: Any, place: int = place) -> None:
                self._note_step(place)

            def measure(*args: Any, place: int = place) -> None:
                self._measure(place)

            self._handles.append(optimizer.register_step_pre_hook(note))
            self._handles.append(optimizer.register_step_post_hook(measure))

    def begin(self) -> None:
        """Begin a step of training."""
        self.stepped = set()

    def end(self) -> None:
        """Leave the optimizers, of which a copied module may share one with the user's."""
        for handle in self._handles:
            handle.remove()

    @property
    def are_judged(self) -> bool:
        """Whether each optimizer has stepped twice."""
        return all(each.count > 1 for each in self.updates)

    def note_backward(self) -> None:
        """Note which gradients are empty. Call this before each backward pass."""
        for place, optimizer in enumerate(self._optimizers):
            self._cleared[place] = bool(self._cleared[place]) or _is_cleared(optimizer)

    def note_gradients(self) -> None:
        """Note which gradients aren't empty. Call this after each backward pass."""
        for place, optimizer in enumerate(self._optimizers):
            self._filled[place] = self._filled[place] or not _is_cleared(optimizer)

    def _note_step(self, place: int) -> None:
        seen = self.updates[place]
        seen.accumulated |= seen.count > 0 and self._cleared[place] is False
        seen.erased |= self._filled[place] and _is_cleared(self._optimizers[place])
        seen.count += 1
        self.stepped.add(place)
        self._cleared[place], self._filled[place] = None, False

    def _measure(self, place: int) -> None:
        """Note the gradients of a step after it: under automatic optimization it makes them."""
        seen = self.updates[place]
        if seen.norm is None:
            seen.norm = _norm(self._optimizers[place])
        self.after_step(self._optimizers[place])


def _is_cleared(optimizer: Optimizer) -> bool:
    return not any(bool(x.any()) for x in _gradients(optimizer))


def _norm(optimizer: Optimizer) -> float:
    norms = [float(torch.linalg.vector_norm(x.float())) for x in _gradients(optimizer)]
    return math.hypot(*norms)


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    return [x.coalesce().values() if x.is_sparse else x for x in gradients]
