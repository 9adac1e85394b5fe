"""LightningModules that are ready to use."""

from lightning_practices.modules._lightning_ensemble import LightningEnsemble

__all__ = ["LightningEnsemble"]
