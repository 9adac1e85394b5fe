"""Batch norm's statistics for averaged weights."""

from typing import Protocol

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_practices.callbacks._recalibrate_batch_norm import RecalibrateBatchNorm


class _Averaging(Protocol):
    @property
    def averaged(self) -> int: ...


class RecalibrateAverages(RecalibrateBatchNorm):
    """Brought along, and only at work if something was averaged."""

    def __init__(self, averaging: _Averaging) -> None:
        super().__init__()
        self._averaging = averaging

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._averaging.averaged:
            super().on_train_end(trainer, pl_module)


def without_recalibration(trainer: Trainer) -> None:
    trainer.callbacks = [  # type: ignore[attr-defined]
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not isinstance(callback, RecalibrateAverages)
    ]


def has_batch_norm(module: nn.Module) -> bool:
    parts = module.modules()
    return any(isinstance(part, _BatchNorm) and part.track_running_stats for part in parts)
