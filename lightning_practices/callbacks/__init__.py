"""Callbacks: practices that the Trainer runs."""

from lightning_practices.callbacks._drop_rate_schedule import DropRateSchedule
from lightning_practices.callbacks._early_stopping import EarlyStopping
from lightning_practices.callbacks._gradient_clipping import GradientClipping
from lightning_practices.callbacks._recalibrate_batch_norm import RecalibrateBatchNorm
from lightning_practices.callbacks._skip_non_finite import SkipNonFinite

__all__ = [
    "DropRateSchedule",
    "EarlyStopping",
    "GradientClipping",
    "RecalibrateBatchNorm",
    "SkipNonFinite",
]
