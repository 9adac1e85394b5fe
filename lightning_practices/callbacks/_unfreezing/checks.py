"""Where unfreezing in phases can't be done."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState


def check_trainer(trainer: Trainer) -> None:
    """Refuse what isn't served.

    Raises:
        MisconfigurationException: If it is there.
    """
    strategy = trainer.strategy
    why = None
    if isinstance(strategy, DeepSpeedStrategy):
        why = "has an engine that knows only what was trainable when it was made"
    elif isinstance(strategy, FSDPStrategy):
        why = "makes flat shards of frozen and trained parameters together"
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        why = "may know only what was trainable when it wrapped the module"
    if why:
        raise MisconfigurationException(
            f"ProgressiveUnfreezing can't unfreeze under {type(strategy).__name__}, which {why}:"
            " use strategy='ddp' or ModelParallelStrategy (FSDP2)"
        )
    if isinstance(getattr(strategy, "_ddp_comm_state", None), PowerSGDState):
        raise MisconfigurationException(
            "PowerSGD keeps errors of the gradients' buckets, which are others in each phase of"
            " ProgressiveUnfreezing: use another ddp_comm_hook, such as bf16_compress_hook"
        )
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, BaseFinetuning):
            raise MisconfigurationException(
                f"ProgressiveUnfreezing and {type(other).__name__} would both freeze: use one"
            )
