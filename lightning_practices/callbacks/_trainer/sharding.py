"""Shards of ``DTensor`` parameters, under FSDP2 and tensor parallelism, and whole tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_practices._names import plain_name


def is_sharded(module: nn.Module) -> bool:
    """Say whether the state of ``module`` contains a ``DTensor``, as under FSDP2."""
    # state_dict() also reshards the parameters that the last forward pass has gathered.
    return any(isinstance(value, DTensor) for value in module.state_dict().values())


def local(value: Any) -> Any:
    """Return this rank's shard of a ``DTensor``, and any other value as it is, without a copy.

    A tensor is detached.
    """
    if isinstance(value, DTensor):
        value = value.to_local()
    return value.detach() if isinstance(value, Tensor) else value


def to_whole(shards: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """Gather whole tensors on rank 0; other ranks get an empty dict.

    Every rank has to call this.

    Args:
        shards: This rank's shards by name, and values that aren't sharded.
        live: The module's tensors by name. Each ``DTensor`` has the layout of its shards.

    Returns:
        The values by name, with the names in a checkpoint of the plain module. Gathered tensors are
        in CPU memory.
    """
    keeps = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    whole: dict[str, Any] = {}
    for name, value in shards.items():
        like = live.get(name)
        if isinstance(like, DTensor):
            mesh, placements = like.device_mesh, like.placements
            shape, stride = like.shape, like.stride()
            shard = DTensor.from_local(value, mesh, placements, shape=shape, stride=stride)
            value = shard.full_tensor().cpu()
        if keeps:
            whole[plain_name(name)] = value
    return whole


def to_shards(whole: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """Return this rank's shards of whole tensors, the inverse of :func:`to_whole`.

    Args:
        whole: The whole tensors, on every rank, and values that aren't sharded. A ``DTensor`` has
            the layout of the module's already.
        live: The module's tensors by name, as for :func:`to_whole`.

    Returns:
        The values by name, with the names in the module. A value that the module lacks keeps its
        name.
    """
    names = {plain_name(name): name for name in live}
    shards = {}
    for plain, value in whole.items():
        name = names.get(plain, plain)
        like = live.get(name)
        if isinstance(value, DTensor):
            value = local(value)
        elif isinstance(like, DTensor):
            mesh, placements = like.device_mesh, like.placements
            # Each rank has the whole tensor, so nothing has to be sent.
            value = local(distribute_tensor(value, mesh, placements, src_data_rank=None))
        shards[name] = value
    return shards
