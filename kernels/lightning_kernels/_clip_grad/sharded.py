"""Norms of sharded gradients, by one reduction over each mesh."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_kernels._clip_grad.passes import power_shares

# A device mesh, ``None`` for whole gradients, and its axes that shard the gradient.
Group = tuple[Any, tuple[int, ...]]


def local_gradients(grads: Iterable[Tensor]) -> dict[Group, list[Tensor]]:
    """Return the local parts of gradients, which may be empty, by mesh and sharding axes.

    Raises:
        RuntimeError: If a gradient has a partial placement.
    """
    groups: dict[Group, list[Tensor]] = {}
    for grad in grads:
        if type(grad) is Tensor or not hasattr(grad, "placements"):
            groups.setdefault((None, ()), []).append(grad)
            continue
        if any(placement.is_partial() for placement in grad.placements):
            raise RuntimeError(
                f"a gradient of shape {list(grad.shape)} is not summed over its processes yet, got"
                f" placements {grad.placements}: redistribute it to Shard or Replicate first"
            )
        axes = tuple(i for i, place in enumerate(grad.placements) if place.is_shard())
        local = grad.to_local()  # type: ignore[attr-defined]
        groups.setdefault((grad.device_mesh, axes), []).append(local)  # type: ignore[attr-defined]
    return groups


def joint_shares(groups: Mapping[Group, Sequence[Tensor]], norm_type: float) -> Tensor:
    """Return for each group the sum of powers, or the maximum, over its processes.

    Every process must call this with the same groups in the same order. The result is float64.
    """
    shares = []
    for (mesh, axes), tensors in groups.items():
        present = [t for t in tensors if t.numel() > 0]
        if present:
            part = power_shares(present, norm_type).double()
            share = part.max() if norm_type == math.inf else part.sum()
        else:
            share = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
        shares.append(reduce_shares(share, mesh, axes, norm_type))
    device = next((share.device for share in shares if share.is_cuda), shares[0].device)
    return torch.stack([share.to(device) for share in shares])


def reduce_shares(shares: Tensor, mesh: Any, axes: Sequence[int], norm_type: float) -> Tensor:
    """Return sums or maxima over the processes along ``axes``; nan stays nan."""
    if norm_type != math.inf:
        for axis in axes:
            dist.all_reduce(shares, group=mesh.get_group(axis))
        return shares
    packed = torch.stack((shares.nan_to_num(0.0, math.inf), shares.isnan().to(shares.dtype)))
    for axis in axes:  # some backends' maximum drops nan
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=mesh.get_group(axis))
    return torch.where(packed[1] > 0, math.nan, packed[0])
