"""Fused training kernels for PyTorch. The package does not depend on Lightning."""

from lightning_kernels._add_norm import add_dropout_layer_norm, add_dropout_rms_norm
from lightning_kernels._batch_norm import batch_norm
from lightning_kernels._clip_grad import (
    GradScale,
    NonFinite,
    clip_grad_adaptive_,
    clip_grad_norm_,
    clip_grad_scale,
    clip_grad_value_,
    clip_grads_with_norm_,
)
from lightning_kernels._core.activation import Activation
from lightning_kernels._core.autocast import Autocast
from lightning_kernels._core.crossover import (
    KernelPolicy,
    get_kernel_policy,
    keep_kernels,
    run_all_kernels,
    set_kernel_policy,
)
from lightning_kernels._core.dispatch import (
    CompiledNorms,
    Route,
    get_compiled_norms,
    route,
    set_compiled_norms,
)
from lightning_kernels._drop_block import drop_block2d, drop_block3d
from lightning_kernels._dropout import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    dropout_activation,
    feature_alpha_dropout,
)
from lightning_kernels._group_norm import group_norm, instance_norm
from lightning_kernels._row_norm import layer_norm, rms_norm
from lightning_kernels._stochastic_depth import stochastic_depth

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Autocast",
    "CompiledNorms",
    "GradScale",
    "KernelPolicy",
    "NonFinite",
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
    "get_compiled_norms",
    "get_kernel_policy",
    "group_norm",
    "instance_norm",
    "keep_kernels",
    "layer_norm",
    "rms_norm",
    "route",
    "run_all_kernels",
    "set_compiled_norms",
    "set_kernel_policy",
    "stochastic_depth",
]
