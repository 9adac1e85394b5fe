"""Running statistics of batch norms for averaged weights."""

from typing import Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_practices.callbacks._recalibrate_batch_norm import RecalibrateBatchNorm
from lightning_practices.callbacks._trainer.others import callbacks_of, set_callbacks


class _Averaging(Protocol):
    @property
    def averaged(self) -> int: ...


class RecalibrateAverages(RecalibrateBatchNorm):
    """Recomputes batch norm statistics at the end of a fit, if weights were averaged.

    ``WeightAveraging`` adds this callback to the Trainer for one fit.

    Args:
        averaging: The callback that averages.
    """

    def __init__(self, averaging: _Averaging) -> None:
        super().__init__()
        self._averaging = averaging

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._averaging.averaged:
            super().on_train_end(trainer, pl_module)


def add_recalibration(trainer: Trainer, pl_module: LightningModule, averaging: _Averaging) -> None:
    """Add a ``RecalibrateAverages``, if there are batch norms and no ``RecalibrateBatchNorm``."""
    if not callbacks_of(trainer, RecalibrateBatchNorm) and _has_batch_norm(pl_module):
        recalibrate = RecalibrateAverages(averaging)
        set_callbacks(trainer, [*callbacks_of(trainer, Callback), recalibrate])
        recalibrate.setup(trainer, pl_module, "fit")


def remove_recalibration(trainer: Trainer) -> None:
    """Remove the ``RecalibrateAverages`` from the Trainer."""
    callbacks = callbacks_of(trainer, Callback)
    set_callbacks(trainer, [one for one in callbacks if not isinstance(one, RecalibrateAverages)])


def _has_batch_norm(module: nn.Module) -> bool:
    parts = module.modules()
    return any(isinstance(part, _BatchNorm) and part.track_running_stats for part in parts)
