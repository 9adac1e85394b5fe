"""Norms of sharded gradients, by one reduction over each mesh."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_kernels._clip_grad.passes import power_shares

# The device mesh of a gradient and the mesh axes that shard it. The mesh is None, without axes, for
# a gradient that is not a DTensor.
Group = tuple[Any, tuple[int, ...]]


def local_gradients(grads: Iterable[Tensor]) -> dict[Group, list[Tensor]]:
    """Return the shards that this process holds, by device mesh and sharding mesh axes.

    A shard may be empty. A gradient that is not a ``DTensor`` is its own shard.

    Raises:
        RuntimeError: If a gradient has a partial placement: it is not yet summed over processes.
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
    """Return for each group the sum of powers (for norm ``inf``: the maximum) over its processes.

    The result is float64. Every process must call this function with the same groups in the same
    order, because each group takes collectives.
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
    """Return the sums (for norm ``inf``: the maxima) over the processes along mesh axes ``axes``.

    nan stays nan.
    """
    if norm_type != math.inf:
        for axis in axes:
            dist.all_reduce(shares, group=mesh.get_group(axis))
        return shares
    packed = torch.stack((shares.nan_to_num(0.0, math.inf), shares.isnan().to(shares.dtype)))
    for axis in axes:  # nan is reduced as a flag, because some backends' maximum drops nan
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=mesh.get_group(axis))
    return torch.where(packed[1] > 0, math.nan, packed[0])
