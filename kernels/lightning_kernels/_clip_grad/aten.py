"""Adaptive gradient clipping by torch's functions, for many gradients at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._clip_grad.sharded import reduce_shares
from lightning_kernels._core.dispatch import is_traced

Pair = tuple[Tensor, Tensor]  # weight and gradient

MIN_NORM = 1e-6  # smallest divisor: a gradient of norm 0 must not divide by 0


def aten_clip_adaptive(
    pairs: Sequence[Pair], clip_factor: float, eps: float, norm_type: float,
    join: Callable[[Tensor], Tensor] = lambda norms: norms,
) -> None:  # fmt: skip
    """Clip the gradients of ``pairs``, at least one, which are on one device.

    Only the norms and the scaling take a call for each tensor. All else is computed for all units
    at a time, since on the CPU small tensors cost as much as their calls. On the CPU a gradient is
    written only if one of its units is clipped.

    Args:
        pairs: Weights and gradients. Some may be empty, if ``join`` is given.
        clip_factor: Largest ratio of the norm of the gradient to the norm of the weights.
        eps: Lower bound of the norm of the weights.
        norm_type: Order of the norm.
        join: Function that returns the norms of whole units, given those of this process's parts.
    """
    weights, grads = zip(*pairs, strict=True)
    norms = [_unit_norms(t, norm_type) for t in (*weights, *grads)]
    sizes = [len(norm) for norm in norms[len(grads) :]]
    weight_norm, grad_norm = join(torch.cat(norms)).chunk(2)
    limit = weight_norm.clamp(min=eps).mul_(clip_factor)
    within = grad_norm <= limit
    readable = grads[0].is_cpu and not is_traced(grads[0])  # without a wait for the device
    if readable and bool(within.all()):
        return
    factor = torch.where(within, 1.0, limit.div_(grad_norm.clamp(min=MIN_NORM)))
    for grad, part, kept in zip(grads, factor.split(sizes), within.split(sizes), strict=True):
        if readable and bool(kept.all()):
            continue
        shape = [-1, *[1] * (grad.dim() - 1)][: grad.dim()]
        # A norm of another gradient may have made the factor float64.
        wide = torch.promote_types(grad.dtype, torch.float32).to_real()
        grad.mul_(part.view(shape).to(wide))


def _unit_norms(t: Tensor, norm_type: float) -> Tensor:
    """Return the norms of the units of ``t``, in one dimension and at least float32."""
    dtype = torch.promote_types(t.dtype, torch.float32)
    rows = t if t.dim() > 1 else t.reshape(1, -1)
    if t.numel() == 0:  # this process may hold an empty shard
        return t.new_zeros(len(rows), dtype=dtype)
    return torch.linalg.vector_norm(rows, norm_type, list(range(1, rows.dim())), dtype=dtype)


def joint_norms(norms: Tensor, mesh: Any, axes: Sequence[int], norm_type: float) -> Tensor:
    """Return the norms of units that are split between the processes along mesh axes ``axes``.

    One reduction for each axis serves all units. The result is float64.
    """
    shares = norms.double()
    if norm_type == math.inf:
        return reduce_shares(shares, mesh, axes, norm_type)
    return reduce_shares(shares**norm_type, mesh, axes, norm_type) ** (1 / norm_type)
