"""The ranks of ``torch.distributed``, for code that has no Trainer to ask."""

from typing import Any, TypeVar

import torch.distributed as dist

_Value = TypeVar("_Value")


def ranks() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return dist.get_rank() if ranks() > 1 else 0


def gathered(value: _Value) -> list[_Value]:
    """Return the values of all ranks, by rank. Collective if there are several."""
    if ranks() == 1:
        return [value]
    values: list[Any] = [None] * ranks()
    dist.all_gather_object(values, value)
    return values
