"""Mixins: practices that a LightningModule or LightningDataModule subclasses."""

from lightning_practices.mixins._early_stopping import EarlyStoppingMixin
from lightning_practices.mixins._fused_layers import FusedLayersMixin

__all__ = ["EarlyStoppingMixin", "FusedLayersMixin"]
