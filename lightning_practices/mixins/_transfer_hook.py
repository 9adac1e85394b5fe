"""A class's own ``on_after_batch_transfer`` beside that of a mixin."""

from collections.abc import Callable
from functools import wraps
from inspect import isfunction
from typing import Any

HOOK = "on_after_batch_transfer"


def check_super(cls: type, mixin: type, is_needed: Callable[[Any], bool], lost: str) -> None:
    """Make a transfer hook that hides the mixin's raise if it doesn't call ``super()``.

    Args:
        cls: The class, in its ``__init_subclass__``.
        mixin: The mixin, whose hook sets ``_has_run``.
        is_needed: Says whether the mixin's hook would have done anything.
        lost: What batches would lack, for the error.
    """
    owner = next((base for base in cls.__mro__ if HOOK in vars(base)), mixin)
    own = getattr(cls, HOOK, None)
    if not isfunction(own) or (owner is not cls and issubclass(owner, mixin)):
        return

    @wraps(own)
    def on_after_batch_transfer(self: Any, batch: Any, dataloader_idx: int) -> Any:
        self._has_run = False
        result = own(self, batch, dataloader_idx)
        if not self._has_run and is_needed(self):
            raise RuntimeError(
                f"{owner.__name__}.{HOOK} doesn't call super().{HOOK}(batch, dataloader_idx), so"
                f" that batches would reach the steps without {lost}"
            )
        return result

    setattr(cls, HOOK, on_after_batch_transfer)
