"""Shards of ``DTensor`` parameters, as FSDP2 and tensor parallelism have, and whole tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_practices._names import plain_name


def is_sharded(module: nn.Module) -> bool:
    """Say whether the state of ``module`` has ``DTensor``, as under FSDP2."""
    # Asking for the state shards the parameters again that the last forward pass has gathered.
    return any(isinstance(value, DTensor) for value in module.state_dict().values())


def local(value: Any) -> Any:
    """Return this rank's shard of a ``DTensor``, and any other value as it is, without a copy.

    A tensor is detached.
    """
    if isinstance(value, DTensor):
        value = value.to_local()
    return value.detach() if isinstance(value, Tensor) else value


def to_whole(shards: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole values on rank 0, and nothing on other ranks; every rank has to call this.

    Args:
        shards: This rank's shards by name, and values that aren't sharded.
        live: The tensors of the module by name: each ``DTensor`` says how its shards are laid out.

    Returns:
        The values by the names that a checkpoint of the plain module has, those of shards in CPU
        memory.
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
    """Return this rank's shards of what :func:`to_whole` has returned.

    Args:
        whole: The whole values, on every rank.
        live: As for :func:`to_whole`.

    Returns:
        The values by the module's names. A value that the module doesn't have keeps its name.
    """
    names = {plain_name(name): name for name in live}
    shards = {}
    for plain, value in whole.items():
        name = names.get(plain, plain)
        like = live.get(name)
        if isinstance(like, DTensor):
            mesh, placements = like.device_mesh, like.placements
            # Each rank has the whole, so that nothing has to be sent.
            value = local(distribute_tensor(value, mesh, placements, src_data_rank=None))
        shards[name] = value
    return shards
