"""The callbacks of a Trainer: selection by class, and their order."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

from lightning_practices._packages import either

_Kind = TypeVar("_Kind")


def callbacks_of(trainer: Trainer, kind: type[_Kind]) -> list[_Kind]:
    """Return the Trainer's callbacks of class ``kind``, of either package, in order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, either(kind))]


def set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Replace the Trainer's callbacks, or change their order.

    A callback may call this from a hook, while Lightning iterates over the old list, since the
    Trainer gets a new list.
    """
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def put_first(trainer: Trainer, callback: Callback) -> None:
    """Move ``callback`` to the front, so that its hooks run before those of all other callbacks."""
    callbacks = callbacks_of(trainer, Callback)
    set_callbacks(trainer, sorted(callbacks, key=lambda one: one is not callback))
