"""Fits whose loss has the penalty in it, to compare with."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from lightning_practices.callbacks import Penalty
from tests.callbacks.clipping import Manual, Net, rows

WEIGHTS = ("net.0.weight", "net.2.weight")


def by_formula(module: LightningModule, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, p in module.named_parameters():
        if name.replace("_orig_mod.", "") in WEIGHTS:
            total = total + l1 * p.abs().sum() + l2 / 2 * p.pow(2).sum()
    return total


class InLoss(Net):
    """Adds the penalty to the loss."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.strengths = l1, l2
        self.double()

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + by_formula(self, *self.strengths)


class ManualInLoss(Manual, InLoss):
    """Likewise; the second optimizer steps at every other batch, on the sum of two gradients."""

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = Net.training_step(self, batch, batch_idx)
        self.manual_backward(loss)
        optimizers: Any = self.optimizers()
        for place, optimizer in enumerate(optimizers[: 1 + batch_idx % 2]):
            l1, l2 = self.strengths
            weight = self.net[2 * place].weight
            (l1 * weight.abs().sum() + l2 / 2 * weight.pow(2).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss


def doubled() -> list[Tensor]:
    return list(rows().double())


def plain(**options: Any) -> Net:
    return Net(**options).double()


class Seen(Penalty):
    """Notes the value of each step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values: list[float] = []

    @override
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.values.append(by_formula(pl_module, self.l1, self.l2).item())
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
