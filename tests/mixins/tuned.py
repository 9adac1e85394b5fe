"""Modules and Trainers for Lightning's Tuner."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

ROWS = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
RATE = 1e-2


class Base(LightningModule):
    """A network with all that a fit may change: weights, statistics and random masks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))
        self.head = nn.Linear(4, 1)
        self.batch_size = 2

    @override
    def forward(self, batch: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(batch))
        return out

    def loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = (self(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(ROWS, batch_size=self.batch_size, shuffle=True)  # type: ignore[arg-type]

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(ROWS, batch_size=self.batch_size)  # type: ignore[arg-type]


class WithRate(Base):
    """The same with an optimizer, and with a rate of its own, as the finder needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = RATE

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Seeds(Callback):
    """Seeds when training starts, since a search draws random numbers."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(3)


def trainer_of(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, Seeds()],
        **options,
    )
