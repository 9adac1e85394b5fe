"""What the profiler calls the operators of torch's layers that surgery replaces."""

from torch import nn
from torchvision import ops
from torchvision.models import convnext, vision_transformer

_BATCH_NORM = (
    "aten::native_batch_norm",
    "aten::native_batch_norm_backward",
    "aten::cudnn_batch_norm",
    "aten::cudnn_batch_norm_backward",
    "aten::miopen_batch_norm",
    "aten::miopen_batch_norm_backward",
)

# For each of torch's layers that we replace, the profiler's names of its operators; no name's time
# may contain another's.
REPLACED_OPS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LayerNorm: ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    convnext.LayerNorm2d: (),  # a layer norm's
    nn.GroupNorm: ("aten::native_group_norm", "aten::native_group_norm_backward"),
    # Made of batch norm's operators.
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _BATCH_NORM),
    nn.RMSNorm: ("aten::_fused_rms_norm", "aten::_fused_rms_norm_backward"),
    nn.Dropout: ("aten::dropout", "aten::dropout_", "aten::native_dropout_backward"),
    **dict.fromkeys(
        (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        ("aten::feature_dropout", "aten::feature_dropout_"),
    ),
    nn.AlphaDropout: ("aten::alpha_dropout", "aten::alpha_dropout_"),
    nn.FeatureAlphaDropout: ("aten::feature_alpha_dropout", "aten::feature_alpha_dropout_"),
    # Made of operators that much else is made of.
    **dict.fromkeys((ops.StochasticDepth, ops.DropBlock2d, ops.DropBlock3d), ()),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _BATCH_NORM),
    nn.SyncBatchNorm: (
        "aten::batch_norm_stats",
        "aten::batch_norm_gather_stats_with_counts",
        "aten::batch_norm_elemt",
        "aten::batch_norm_backward_reduce",
        "aten::batch_norm_backward_elemt",
    ),
    # What these fold is their layers', above.
    **dict.fromkeys((nn.TransformerDecoderLayer, nn.TransformerEncoderLayer), ()),
    vision_transformer.EncoderBlock: (),
}
REPLACED = frozenset(name for names in REPLACED_OPS.values() for name in names)
