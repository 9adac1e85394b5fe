"""Plugins: practices that a Trainer's strategy runs."""

from lightning_practices.plugins._fused_sync_batch_norm import FusedSyncBatchNorm

__all__ = ["FusedSyncBatchNorm"]
