"""Drop-in layers that run the fused kernels, and losses that smooth labels.

Each layer is a subclass of torch's or torchvision's layer of the same name and has the same
``state_dict``, or has no counterpart there. Only :class:`SyncBatchNorm` is not a subclass of
torch's layer.
"""

from lightning_practices.nn._add_norm import AddDropoutLayerNorm
from lightning_practices.nn._batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from lightning_practices.nn._drop_block import DropBlock2d, DropBlock3d
from lightning_practices.nn._drop_cluster import DropCluster2d, fit_drop_clusters
from lightning_practices.nn._drop_connect import DropConnectLinear
from lightning_practices.nn._dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
)
from lightning_practices.nn._group_norm import GroupNorm
from lightning_practices.nn._instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from lightning_practices.nn._label_smoothing import (
    LabelSmoothingBCEWithLogitsLoss,
    LabelSmoothingCrossEntropyLoss,
)
from lightning_practices.nn._layer_norm import LayerNorm
from lightning_practices.nn._layer_norm2d import LayerNorm2d
from lightning_practices.nn._norm_activation import norm_activation
from lightning_practices.nn._rms_norm import RMSNorm
from lightning_practices.nn._scheduled_rate import ScheduledRate
from lightning_practices.nn._stochastic_depth import StochasticDepth
from lightning_practices.nn._sync_batch_norm import SyncBatchNorm
from lightning_practices.nn._transformer import TransformerDecoderLayer, TransformerEncoderLayer
from lightning_practices.nn.blocks.vision_transformer import EncoderBlock

__all__ = [
    "AddDropoutLayerNorm",
    "AlphaDropout",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "DropBlock2d",
    "DropBlock3d",
    "DropCluster2d",
    "DropConnectLinear",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "EncoderBlock",
    "FeatureAlphaDropout",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LabelSmoothingBCEWithLogitsLoss",
    "LabelSmoothingCrossEntropyLoss",
    "LayerNorm",
    "LayerNorm2d",
    "RMSNorm",
    "ScheduledRate",
    "StochasticDepth",
    "SyncBatchNorm",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "fit_drop_clusters",
    "norm_activation",
]
