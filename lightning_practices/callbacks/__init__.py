"""Callbacks: practices that the Trainer runs."""

from lightning_practices.callbacks._early_stopping import EarlyStopping

__all__ = ["EarlyStopping"]
