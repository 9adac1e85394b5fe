"""Gradient clipping, in one or two launches for any number of tensors.

- ``clip_grad``: clipping by norm and by value.
- ``adaptive``: adaptive clipping, with its kernel.
- ``aten``: adaptive clipping by torch's functions.
- ``scale``: clipping by the ``grad_scale`` of fused optimizers.
- ``passes``: the two passes of clipping by norm, by kernels or by torch's functions.
- ``kernels``: the Triton kernels of clipping by norm and by value.
- ``tensor_table``: the table of tensors that a kernel reads.
- ``sharded``: norms of sharded gradients.
"""

from lightning_kernels._clip_grad.adaptive import clip_grad_adaptive_
from lightning_kernels._clip_grad.clip_grad import (
    NonFinite,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
)
from lightning_kernels._clip_grad.scale import GradScale, clip_grad_scale

__all__ = [
    "GradScale",
    "NonFinite",
    "clip_grad_adaptive_",
    "clip_grad_norm_",
    "clip_grad_scale",
    "clip_grad_value_",
    "clip_grads_with_norm_",
]
