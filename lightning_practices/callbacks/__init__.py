"""Callbacks: practices that the Trainer runs."""

from lightning_practices.callbacks._averaging.weight_averaging import WeightAveraging
from lightning_practices.callbacks._clipping.gradient_clipping import GradientClipping
from lightning_practices.callbacks._curves.learning_curves import LearningCurves
from lightning_practices.callbacks._drop_rate_schedule import DropRateSchedule
from lightning_practices.callbacks._early_stopping.early_stopping import EarlyStopping
from lightning_practices.callbacks._early_stopping.retrain_for import RetrainFor, join_loaders
from lightning_practices.callbacks._penalty import Penalty
from lightning_practices.callbacks._recalibrate_batch_norm import RecalibrateBatchNorm
from lightning_practices.callbacks._skip_non_finite.skip_non_finite import SkipNonFinite
from lightning_practices.callbacks._snapshot_ensemble import SnapshotEnsemble
from lightning_practices.callbacks._unfreezing.plan import unfreezing_schedule
from lightning_practices.callbacks._unfreezing.progressive_unfreezing import ProgressiveUnfreezing
from lightning_practices.callbacks._unfreezing.schedule import write_schedule

__all__ = [
    "DropRateSchedule",
    "EarlyStopping",
    "GradientClipping",
    "LearningCurves",
    "Penalty",
    "ProgressiveUnfreezing",
    "RecalibrateBatchNorm",
    "RetrainFor",
    "SkipNonFinite",
    "SnapshotEnsemble",
    "WeightAveraging",
    "join_loaders",
    "unfreezing_schedule",
    "write_schedule",
]
