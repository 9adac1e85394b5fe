"""Errors for Trainers and optimizers that progressive unfreezing doesn't support."""

from collections.abc import Mapping

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

from lightning_practices._names import count, some
from lightning_practices._packages import either
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.strategies import FSDP1_OR_DEEPSPEED, refuse


def check_trainer(trainer: Trainer) -> None:
    """Raise ``MisconfigurationException`` if the strategy or another callback is unsupported."""
    strategy = trainer.strategy
    served = isinstance(strategy, either(SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy))
    refuse(
        trainer,
        *(FSDP1_OR_DEEPSPEED if served else (Strategy,)),
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


def check_optimizers(trainer: Trainer, trained: Mapping[str, Tensor]) -> None:
    """Raise ``MisconfigurationException`` if the optimizers lack parameters to be ``trained``."""
    held = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
    missing = [name for name, parameter in trained.items() if id(parameter) not in held]
    if missing:
        raise MisconfigurationException(
            f"configure_optimizers of {type(trainer.lightning_module).__name__} has left out"
            f" {count(len(missing), 'parameter')} to be trained: {some(missing)}; give the"
            " optimizer all parameters, as in self.parameters(): frozen ones have no gradient, so"
            " the optimizer leaves them alone"
        )
