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
    join: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = None,
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
        join: Function of the norms of the weights' and the gradients' units in this process. It
            returns the norms of the whole units.
    """
    weights, grads = zip(*pairs, strict=True)
    alone = len(grads) == 1 and join is None  # then the norms broadcast against the gradient
    norms = [_unit_norms(grad, norm_type, alone) for grad in grads]
    weight_norm = _joined([_unit_norms(weight, norm_type, alone) for weight in weights])
    grad_norm = _joined(norms)
    if join is not None:
        weight_norm, grad_norm = join(weight_norm, grad_norm)
    limit = weight_norm.clamp_(min=eps).mul_(clip_factor)
    within = grad_norm <= limit
    readable = grads[0].is_cpu and not is_traced(grads[0])  # without a wait for the device
    if readable and bool(within.all()):
        return
    factor = limit.div_(grad_norm.clamp_(min=MIN_NORM))
    if not readable or within.numel() > 1:
        # Within the limit the factor is exactly 1. nan is not within it.
        factor.masked_fill_(within, 1.0)
    if alone:
        _scale_units(grads[0], factor)
        return
    flags = within.tolist() if readable and len(grads) > 1 else None
    first = 0
    for grad, norm in zip(grads, norms, strict=True):
        last = first + norm.shape[0]
        if flags is None or not all(flags[first:last]):
            dims = grad.dim()
            some = factor[first:last]
            _scale_units(grad, some if dims == 1 else some.view(-1, *[1] * (dims - 1)))
        first = last


def _scale_units(grad: Tensor, factor: Tensor) -> None:
    """Multiply each unit of ``grad`` by its factor."""
    if factor.dtype == torch.float64:  # it is, if any of the gradients is
        factor = factor.to(torch.promote_types(grad.dtype, torch.float32).to_real())
    grad.mul_(factor if grad.dim() else factor[0])


def _unit_norms(t: Tensor, norm_type: float, keepdim: bool) -> Tensor:
    """Return the norms of the units of ``t``, at least float32.

    They have one dimension, or with ``keepdim`` the dimensions of ``t``, at least one.
    """
    dims = t.dim()
    dtype = None if t.dtype is torch.float32 else torch.promote_types(t.dtype, torch.float32)
    if t.numel() == 0:  # this process may hold an empty shard
        return t.new_zeros(t.shape[0] if dims > 1 else 1, dtype=dtype)
    if dims > 1:
        return torch.linalg.vector_norm(t, norm_type, [*range(1, dims)], keepdim, dtype=dtype)
    return torch.linalg.vector_norm(t if dims else t.view(1), norm_type, 0, True, dtype=dtype)


def _joined(norms: list[Tensor]) -> Tensor:
    """Return all norms in one tensor, at least one. A single tensor is returned as it is."""
    return norms[0] if len(norms) == 1 else torch.cat(norms)


def joint_norms(
    weight_norm: Tensor, grad_norm: Tensor, mesh: Any, axes: Sequence[int], norm_type: float
) -> Sequence[Tensor]:
    """Return the norms of units that are split between the processes along mesh axes ``axes``.

    One reduction for each axis serves all units. The results are float64.
    """
    shares = torch.cat((weight_norm, grad_norm)).double()
    if norm_type == math.inf:
        return reduce_shares(shares, mesh, axes, norm_type).chunk(2)
    return (reduce_shares(shares**norm_type, mesh, axes, norm_type) ** (1 / norm_type)).chunk(2)
