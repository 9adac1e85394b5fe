"""Drop-in layers: each is a subclass of the one in ``torch.nn``, and computes the same faster."""

from lightning_practices.nn._batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from lightning_practices.nn._dropout import Dropout
from lightning_practices.nn._layer_norm import LayerNorm
from lightning_practices.nn._sync_batch_norm import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Dropout",
    "LayerNorm",
    "SyncBatchNorm",
]
