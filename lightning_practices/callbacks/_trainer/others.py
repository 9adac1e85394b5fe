"""The callbacks of a Trainer: those of a kind, and their order."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

_Kind = TypeVar("_Kind")


def callbacks_of(trainer: Trainer, kind: type[_Kind]) -> list[_Kind]:
    """Return the Trainer's callbacks of a kind, in their order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Give the Trainer other callbacks, or the same ones in another order.

    It gets a new list, so a callback may call this from a hook: Lightning is then iterating over
    the old list.
    """
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def put_first(trainer: Trainer, callback: Callback) -> None:
    """Let the hooks of ``callback`` run before those of all others."""
    callbacks = callbacks_of(trainer, Callback)
    set_callbacks(trainer, sorted(callbacks, key=lambda one: one is not callback))
