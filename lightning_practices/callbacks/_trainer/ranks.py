"""Numbers that all ranks agree on."""

from lightning.pytorch import Trainer
from torch import Tensor


def mean_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Return the mean over all ranks, floating point; every rank has to call this."""
    value = value.clone() if value.is_floating_point() else value.float()
    if trainer.world_size > 1:  # in place
        value = value.to(trainer.strategy.root_device)
        trainer.strategy.reduce(value, reduce_op="mean")
    return value
