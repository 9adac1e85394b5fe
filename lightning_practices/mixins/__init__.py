"""Mixins: base classes that add practices to a LightningModule or LightningDataModule."""

from lightning_practices.mixins._augmentation import AugmentationMixin
from lightning_practices.mixins._checkpoint import CheckpointMixin
from lightning_practices.mixins._data import DataPracticeMixin
from lightning_practices.mixins._data_practices import DataPractices
from lightning_practices.mixins._early_stopping import EarlyStoppingMixin
from lightning_practices.mixins._fine_tuning import FineTuningMixin
from lightning_practices.mixins._fused_layers import FusedLayersMixin
from lightning_practices.mixins._gradient_clipping import GradientClippingMixin
from lightning_practices.mixins._initialization import InitMixin
from lightning_practices.mixins._learning_rate import LearningRateScheduleMixin
from lightning_practices.mixins._monte_carlo_dropout import MonteCarloDropoutMixin
from lightning_practices.mixins._optimizer import OptimizerMixin
from lightning_practices.mixins._penalty import PenaltyMixin
from lightning_practices.mixins._practice import MonitorMixin, PracticeMixin
from lightning_practices.mixins._preprocessed import PreprocessedMixin
from lightning_practices.mixins._preprocessing import PreprocessingMixin
from lightning_practices.mixins._training_practices import TrainingPractices
from lightning_practices.mixins._weight_averaging import WeightAveragingMixin

__all__ = [
    "AugmentationMixin",
    "CheckpointMixin",
    "DataPracticeMixin",
    "DataPractices",
    "EarlyStoppingMixin",
    "FineTuningMixin",
    "FusedLayersMixin",
    "GradientClippingMixin",
    "InitMixin",
    "LearningRateScheduleMixin",
    "MonitorMixin",
    "MonteCarloDropoutMixin",
    "OptimizerMixin",
    "PenaltyMixin",
    "PracticeMixin",
    "PreprocessedMixin",
    "PreprocessingMixin",
    "TrainingPractices",
    "WeightAveragingMixin",
]
