"""Whether an optimizer has changed the weights since they were last averaged."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class Changes:
    """Notes whether a step has changed weights.

    A step skipped by a ``GradScaler`` isn't noted. One skipped by ``SkipNonFinite`` isn't either,
    as no parameter has a gradient.

    Attributes:
        any: Whether a step has changed weights since this was last set to ``False``.
    """

    def __init__(self) -> None:
        self.any = False
        self._hooks: list[RemovableHandle] = []

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Watch the steps of optimizers."""
        self._hooks = [optimizer.register_step_post_hook(self._note) for optimizer in optimizers]

    @property
    def watched(self) -> bool:
        """Whether optimizers are watched, as they are during training."""
        return bool(self._hooks)

    def unwatch(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _note(self, optimizer: Optimizer, *_: Any) -> None:
        if not self.any:
            groups = optimizer.param_groups
            self.any = any(p.grad is not None for group in groups for p in group["params"])
