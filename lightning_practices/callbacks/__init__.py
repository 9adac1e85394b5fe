"""Callbacks: practices that the Trainer runs.

A callback that needs one file is a module here. A callback that needs several files is a private
package, whose docstring lists its files. ``_trainer`` holds the functions on a Trainer that several
callbacks share.
"""

from lightning_practices.callbacks._averaging import AveragingKind, WeightAveraging
from lightning_practices.callbacks._best_checkpoint import BestCheckpoint
from lightning_practices.callbacks._clipping import ClippingAlgorithm, GradientClipping
from lightning_practices.callbacks._curves import LearningCurves
from lightning_practices.callbacks._drop_rate_schedule import DropRateSchedule
from lightning_practices.callbacks._early_stopping import EarlyStopping, RetrainFor, join_loaders
from lightning_practices.callbacks._exact_resume import ExactResume
from lightning_practices.callbacks._fit_preprocessing import FitPreprocessing
from lightning_practices.callbacks._fused_layers import FusedLayers
from lightning_practices.callbacks._initialize import Initialize
from lightning_practices.callbacks._learning_rate_scheduler import LearningRateScheduler
from lightning_practices.callbacks._penalty import Penalty
from lightning_practices.callbacks._recalibrate_batch_norm import RecalibrateBatchNorm
from lightning_practices.callbacks._skip_non_finite import (
    NonFiniteParameter,
    NonFiniteReport,
    SkipNonFinite,
)
from lightning_practices.callbacks._snapshot_ensemble import SnapshotEnsemble
from lightning_practices.callbacks._training_advisor import TrainingAdvisor
from lightning_practices.callbacks._types import Interval, Mode
from lightning_practices.callbacks._unfreezing import (
    BlocksBy,
    ProgressiveUnfreezing,
    UnfreezingSchedule,
    unfreezing_schedule,
    write_schedule,
)

__all__ = [
    "AveragingKind",
    "BestCheckpoint",
    "BlocksBy",
    "ClippingAlgorithm",
    "DropRateSchedule",
    "EarlyStopping",
    "ExactResume",
    "FitPreprocessing",
    "FusedLayers",
    "GradientClipping",
    "Initialize",
    "Interval",
    "LearningCurves",
    "LearningRateScheduler",
    "Mode",
    "NonFiniteParameter",
    "NonFiniteReport",
    "Penalty",
    "ProgressiveUnfreezing",
    "RecalibrateBatchNorm",
    "RetrainFor",
    "SkipNonFinite",
    "SnapshotEnsemble",
    "TrainingAdvisor",
    "UnfreezingSchedule",
    "WeightAveraging",
    "join_loaders",
    "unfreezing_schedule",
    "write_schedule",
]
