"""Errors and warnings about Trainers with which early stopping does not work as asked."""

from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import WeightAveraging as LightningWeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.strategies import FSDP1_OR_DEEPSPEED, refuse


def check_trainer(trainer: Trainer, monitor: str, rivals: Iterable[str]) -> None:
    """Raise ``MisconfigurationException`` if the best weights can't be kept and restored.

    Args:
        trainer: The Trainer of the fit that starts.
        monitor: The value that decides which weights are the best.
        rivals: The values of other callbacks that would restore weights too.
    """
    instead = (
        "set EarlyStopping(restore_best_weights=False) and let ModelCheckpoint(monitor=...)"
        " save the best weights"
    )
    refuse(
        trainer,
        *FSDP1_OR_DEEPSPEED,
        who="EarlyStopping",
        cannot="keep the best weights",
        instead=f"use ModelParallelStrategy (FSDP2), or {instead}",
    )
    for other in callbacks_of(trainer, LightningWeightAveraging):
        raise MisconfigurationException(
            f"{type(other).__name__} validates averaged weights, and EarlyStopping would keep"
            " the weights under training: use the WeightAveraging of this package, or"
            f" {instead}"
        )
    for rival in rivals:
        raise MisconfigurationException(
            f"EarlyStopping of {monitor!r} and of {rival!r} would both restore"
            " their best weights: set restore_best_weights=False for all but one"
        )


def warn_of_others(trainer: Trainer, monitor: str) -> None:
    """Warn if an ``EarlyStopping`` of Lightning may end the fit before ours does.

    Args:
        trainer: The Trainer of the fit that starts.
        monitor: The value that our callback monitors.
    """
    for other in callbacks_of(trainer, LightningEarlyStopping):
        if not isinstance(other, PracticeCallback):
            rank_zero_warn(
                f"{type(other).__name__} of {other.monitor!r} and EarlyStopping of {monitor!r} may"
                " both end this fit, each by its own patience: remove one, or use EarlyStopping of"
                " this package for both values"
            )
