"""Errors for wrong arguments of weight averaging and for unsupported Trainers."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.callbacks import WeightAveraging as LightningWeightAveraging

from lightning_practices._arguments import (
    check_choice,
    check_count_or_share,
    check_flag,
    check_number,
    check_whole,
)
from lightning_practices._packages import either
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.strategies import FSDP1_OR_DEEPSPEED, refuse


def check_arguments(
    kind: str,
    decay: float | None,
    decay_warmup: bool,
    start: int | float | None,
    interval: str | None,
    frequency: int,
) -> None:
    """Raise if an argument is no number, out of its range, or contradicts another argument."""
    check_choice("kind", kind, ("ema", "swa"))
    if interval is not None:
        check_choice("interval", interval, ("step", "epoch"))
    check_flag("decay_warmup", decay_warmup)
    if kind == "swa" and decay is not None:
        raise ValueError(
            "with 'swa' all weights count alike, so there is no decay: leave decay out, or choose"
            " 'ema'"
        )
    if decay is not None:
        check_number("decay", decay, ge=0, lt=1)
    if start is not None:
        check_count_or_share("start", start, "steps or epochs", least=0, lt=1)
    check_whole("frequency", frequency, 1)


def check_trainer(trainer: Trainer, own: Callback) -> None:
    """Raise ``MisconfigurationException`` if the strategy or another callback is unsupported."""
    refuse(
        trainer,
        *FSDP1_OR_DEEPSPEED,
        who="WeightAveraging",
        cannot="average the weights",
        instead="use ModelParallelStrategy (FSDP2) or DDPStrategy",
    )
    rivals = (type(own), *either(LightningWeightAveraging, StochasticWeightAveraging))
    for other in callbacks_of(trainer, Callback):
        if isinstance(other, rivals) and other is not own:
            raise MisconfigurationException(
                f"WeightAveraging and {type(other).__name__} would both give the module their"
                " averages: remove one"
            )
        if isinstance(other, either(ModelCheckpoint)) and other.save_weights_only:
            raise MisconfigurationException(
                "ModelCheckpoint(save_weights_only=True) runs no hook of callbacks, so it would"
                " save the weights in training instead of the averages that were validated: set"
                " save_weights_only=False"
            )
