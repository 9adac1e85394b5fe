"""Errors for wrong arguments of weight averaging and for unsupported Trainers."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.callbacks import WeightAveraging as LightningWeightAveraging

from lightning_practices._arguments import check_number, check_whole
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.strategies import FSDP1_OR_DEEPSPEED, refuse


def check_arguments(
    kind: str,
    decay: float | None,
    start: int | float | None,
    interval: str | None,
    frequency: int,
) -> None:
    """Raise if an argument is no number, out of its range, or contradicts another argument."""
    if kind not in ("ema", "swa"):
        raise ValueError(f"kind has to be 'ema' or 'swa', but got {kind!r}")
    if interval not in (None, "step", "epoch"):
        raise ValueError(f"interval has to be 'step' or 'epoch', but got {interval!r}")
    if kind == "swa" and decay is not None:
        raise ValueError(
            "with 'swa' all weights count alike, so there is no decay: leave decay out, or choose"
            " 'ema'"
        )
    if decay is not None:
        check_number("decay", decay, ge=0, lt=1)
    is_whole = isinstance(start, int) and not isinstance(start, bool) and start >= 0
    is_share = isinstance(start, float) and 0.0 <= start < 1.0
    if start is not None and not is_whole and not is_share:
        raise ValueError(
            "start has to be a number of steps or epochs, an int from 0 on, or a share of the fit,"
            f" a float from 0 to below 1, but got {start!r}"
        )
    check_whole("frequency", frequency, 1)


def check_trainer(trainer: Trainer, own: Callback) -> None:
    """Raise ``MisconfigurationException`` if the strategy or another callback is unsupported."""
    refuse(
        trainer,
        FSDP1_OR_DEEPSPEED,
        who="WeightAveraging",
        cannot="average the weights",
        instead="use ModelParallelStrategy (FSDP2) or DDPStrategy",
    )
    rivals = (type(own), LightningWeightAveraging, StochasticWeightAveraging)
    for other in callbacks_of(trainer, Callback):
        if isinstance(other, rivals) and other is not own:
            raise MisconfigurationException(
                f"WeightAveraging and {type(other).__name__} would both give the module their"
                " averages: remove one"
            )
        if isinstance(other, ModelCheckpoint) and other.save_weights_only:
            raise MisconfigurationException(
                "ModelCheckpoint(save_weights_only=True) runs no hook of callbacks, so it would"
                " save the weights in training instead of the averages that were validated: set"
                " save_weights_only=False"
            )
