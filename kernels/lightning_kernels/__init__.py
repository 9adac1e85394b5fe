"""Fused training kernels for PyTorch; no dependency on Lightning."""

from lightning_kernels._add_norm.add_norm import add_dropout_layer_norm, add_dropout_rms_norm
from lightning_kernels._batch_norm.batch_norm import batch_norm
from lightning_kernels._clip_grad.adaptive import clip_grad_adaptive_
from lightning_kernels._clip_grad.clip_grad import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
)
from lightning_kernels._clip_grad.scale import GradScale, clip_grad_scale
from lightning_kernels._core.activation import Activation
from lightning_kernels._core.dispatch import Route, leave_norms_to_inductor, route
from lightning_kernels._drop_block.drop_block import drop_block2d, drop_block3d
from lightning_kernels._dropout.channel_dropout import (
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from lightning_kernels._dropout.dropout import alpha_dropout, dropout
from lightning_kernels._dropout.dropout_activation import dropout_activation
from lightning_kernels._group_norm.group_norm import group_norm
from lightning_kernels._group_norm.instance_norm import instance_norm
from lightning_kernels._row_norm.layer_norm import Autocast, layer_norm
from lightning_kernels._row_norm.rms_norm import rms_norm
from lightning_kernels._stochastic_depth.stochastic_depth import stochastic_depth

__all__ = [
    "Activation",
    "Autocast",
    "GradScale",
    "Route",
    "add_dropout_layer_norm",
    "add_dropout_rms_norm",
    "alpha_dropout",
    "batch_norm",
    "clip_grad_adaptive_",
    "clip_grad_norm_",
    "clip_grad_scale",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "drop_block2d",
    "drop_block3d",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_activation",
    "feature_alpha_dropout",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "leave_norms_to_inductor",
    "rms_norm",
    "route",
    "stochastic_depth",
]
