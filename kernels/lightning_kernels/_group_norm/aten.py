"""Group norm by torch's function."""

import torch
from torch import Tensor

from lightning_kernels._core.autocast import note_dtype, without_autocast
from lightning_kernels._core.layout import with_format_of


def aten_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Call torch's group norm. The result has the dtype and memory format of ``x``."""
    if not x.is_cpu:  # outside of the CPU, ATen needs input and parameters of one dtype
        weight, bias = (t if t is None else t.to(x.dtype) for t in (weight, bias))
        # ATen returns a contiguous tensor there. On the CPU it keeps the memory format.
        y = without_autocast(torch_group_norm, x, num_groups, weight, bias, eps)
        return with_format_of(y, x)
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        weight, bias = weight.float(), bias.float()
    try:
        return torch_group_norm(x, num_groups, weight, bias, eps)
    except RuntimeError as error:
        note_dtype(error, x)
        raise


def torch_group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Call torch's function, with a weight of ones if there is a bias but no weight.

    Without a weight, torch 2.11 computes no gradient of the bias.
    """
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)
    # Not torch.nn.functional.group_norm, whose checks of the shape callers have made already.
    return torch.group_norm(x, groups, weight, bias, eps)
