"""Numbers and decisions that are the same on every rank.

A callback that stops training, skips a step or divides a learning rate has to do so on all ranks at
the same step, or the ranks drift apart or wait for each other forever. So it decides by the results
of these functions. All of these functions are collective: every rank has to call them, in the same
order.
"""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def mean_over_ranks(trainer: Trainer, value: Tensor | None) -> Tensor | None:
    """Return the mean of ``value`` over the ranks that have one, as a floating-point tensor.

    Args:
        trainer: The Trainer.
        value: A tensor of one element; ``None`` if this rank has no value.

    Returns:
        The mean, without dimensions; ``None`` if no rank has a value.
    """
    if value is not None:
        value = value.squeeze()
        value = value.clone() if value.is_floating_point() else value.float()
    if trainer.world_size == 1:
        return value
    total = torch.zeros(2, dtype=torch.float64, device=trainer.strategy.root_device)
    if value is not None:
        total[0], total[1] = value, 1
    total, count = trainer.strategy.reduce(total, reduce_op="sum").unbind()
    if not count:
        return None
    return (total / count).to(torch.float32 if value is None else value.dtype)


def sum_over_ranks(trainer: Trainer, counts: Tensor) -> Tensor:
    """Return the sum of the integers ``counts`` over all ranks."""
    counts = counts.to(trainer.strategy.root_device, torch.int64)
    total: Tensor = trainer.strategy.reduce(counts, reduce_op="sum")
    return total


def any_rank(trainer: Trainer, flag: Tensor | bool) -> bool:
    """Say whether ``flag`` is true on at least one rank.

    The host waits for the device once, even if ``flag`` is a tensor on the device.
    """
    return bool(sum_over_ranks(trainer, torch.as_tensor(flag)))


def all_ranks(trainer: Trainer, flag: bool) -> bool:
    """Say whether ``flag`` is true on every rank."""
    return not any_rank(trainer, not flag)


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """Return the ``value`` of each rank, in the order of the ranks.

    The values are pickled, so tensors should be few and in CPU memory.
    """
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
