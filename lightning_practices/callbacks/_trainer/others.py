"""The callbacks of a Trainer: selection by class, their order, and those that don't go together."""

from typing import TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
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


def refuse_finetuning_scheduler(trainer: Trainer, own: Callback, argument: str) -> None:
    """Raise if the Trainer has a callback of finetuning-scheduler that does the work of ``own``.

    ``FinetuningScheduler`` removes other callbacks for early stopping and for checkpoints from the
    Trainer, and makes optimizers and schedulers anew in each phase.

    Args:
        trainer: The Trainer.
        own: The callback of this package.
        argument: The argument of the mixins that turns ``own`` off.

    Raises:
        MisconfigurationException: If the Trainer has such a callback.
    """
    package = "finetuning_scheduler"
    for other in callbacks_of(trainer, Callback):
        if any(base.__module__.partition(".")[0] == package for base in type(other).__mro__):
            raise MisconfigurationException(
                f"{type(other).__name__} and {type(own).__name__} don't go together: by phases"
                " finetuning-scheduler stops, saves checkpoints and makes schedulers with"
                f" callbacks of its own. Remove {type(own).__name__}, by {argument}=None of the"
                " mixins, or use ProgressiveUnfreezing"
            )
