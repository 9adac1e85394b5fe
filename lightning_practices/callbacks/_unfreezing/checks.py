"""Errors for Trainers that progressive unfreezing doesn't support."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.strategies import FSDP1_OR_DEEPSPEED, refuse


def check_trainer(trainer: Trainer) -> None:
    """Raise ``MisconfigurationException`` if the strategy or another callback is unsupported."""
    strategy = trainer.strategy
    served = isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy)
    refuse(
        trainer,
        FSDP1_OR_DEEPSPEED if served else Strategy,
        who="ProgressiveUnfreezing",
        cannot="unfreeze parameters during the fit",
        instead="use strategy='ddp' or ModelParallelStrategy (FSDP2)",
    )
    if isinstance(getattr(strategy, "_ddp_comm_state", None), PowerSGDState):
        raise MisconfigurationException(
            "PowerSGD keeps errors of the gradients' buckets, which are others in each phase of"
            " ProgressiveUnfreezing: use another ddp_comm_hook, such as bf16_compress_hook"
        )
    for other in callbacks_of(trainer, BaseFinetuning):
        raise MisconfigurationException(
            f"ProgressiveUnfreezing and {type(other).__name__} would both freeze: use one"
        )
