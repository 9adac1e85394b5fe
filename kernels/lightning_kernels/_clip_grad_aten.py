"""Gradient clipping in torch's own functions, which does not write what it would not change."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


@torch.no_grad()
def aten_clip_grad_norm_(
    grads: Sequence[Tensor], max_norm: float, norm_type: float, nonfinite: str
) -> Tensor:
    """Clip gradients by their norm, as :func:`lightning_kernels.clip_grad_norm_` describes it."""
    wide = [g.float() if g.dtype in (torch.float16, torch.bfloat16) else g for g in grads]
    total = get_total_norm(wide, norm_type, error_if_nonfinite=nonfinite == "error")
    if total.device.type == "cpu":  # to look costs nothing
        value = float(total)
        if max_norm / (value + 1e-6) >= 1 or (nonfinite == "skip" and not math.isfinite(value)):
            return total
    finite = total.isfinite()
    if nonfinite == "zero":
        for grad in grads:
            grad.masked_fill_(~finite.to(grad.device), 0.0)
        clipping = torch.where(finite, total, 0.0)
    elif nonfinite == "skip":
        clipping = torch.where(finite, total, 0.0)
    else:
        clipping = total
    holders = [_Holder(grad) for grad in grads]
    clip_grads_with_norm_(holders, max_norm, clipping)  # type: ignore[arg-type]
    return total


class _Holder:
    """What torch's function takes for a parameter."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
