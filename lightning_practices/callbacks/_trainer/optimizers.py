"""The optimizers of a Trainer, and the ``GradScaler`` of its precision."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.amp import GradScaler

from lightning_practices._packages import either


def place_of(trainer: Trainer, optimizer: Any) -> int:
    """Return the index of an optimizer, or of its Lightning wrapper, in ``Trainer.optimizers``.

    Raises:
        ValueError: If the Trainer doesn't have this optimizer.
    """
    bare = optimizer.optimizer if isinstance(optimizer, either(LightningOptimizer)) else optimizer
    for place, other in enumerate(trainer.optimizers):
        if other is bare:
            return place
    raise ValueError(
        f"{type(bare).__name__} isn't one of the optimizers that configure_optimizers returned"
    )


def grad_scaler(trainer: Trainer) -> GradScaler | None:
    """Return the ``GradScaler`` of ``"16-mixed"``; ``None`` under other precisions."""
    scaler: GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None
