"""A module and a datamodule for the command."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_practices.mixins import TrainingPractices
from tests.advisor.programs import digits


class Net(TrainingPractices, LightningModule):
    def __init__(self, width: int = 16, softmax: bool = False, **practices: Any) -> None:
        super().__init__(**practices)
        layers = [nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)]
        self.net = nn.Sequential(*layers, *([nn.Softmax(dim=1)] if softmax else []))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))


class Plain(LightningModule):
    """Has no callbacks, which a long fit should have."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


class Digits(LightningDataModule):
    def train_dataloader(self) -> Any:
        images, classes = digits()
        return DataLoader(TensorDataset(images[:320], classes[:320]), 32, shuffle=True)

    def val_dataloader(self) -> Any:
        images, classes = digits()
        return DataLoader(TensorDataset(images[320:400], classes[320:400]), 32)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.1), nn.Linear(4, 2))


weights = torch.zeros(3)  # no model
