"""Datamodules and modules of the tests of preprocessing."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_practices.mixins import PreprocessedMixin, PreprocessingMixin


class Counted(Dataset[tuple[Tensor, Tensor]]):
    """Samples that count how often each was read, in this process."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.reads = torch.zeros(len(x), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        self.reads[place] += 1
        return self.x[place], self.y[place]


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 20, 0.3]) + 5
    return x, x.sum(1, keepdim=True) * 10


class Plain(LightningDataModule):
    """Training, validation and test splits that differ."""

    shift = 0.0  # of validation and test data

    def __init__(self, count: int = 26, **practices: Any) -> None:
        super().__init__(**practices)
        self.train = Counted(*samples(count, 1))
        self.other = TensorDataset(*(x + self.shift for x in samples(10, 2)))

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=4, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.other, batch_size=5)

    test_dataloader = predict_dataloader = val_dataloader


class Data(PreprocessingMixin, Plain):
    pass


class Net(LightningModule):
    """Keeps the batches that its steps get."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.got: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.got["train"].append(batch)
        loss: Tensor = (self.net(batch[0]) - batch[1]).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.got["val"].append(batch)
        self.log("val_loss", (self.net(batch[0]) - batch[1]).square().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.got["test"].append(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.got["predict"].append(batch)
        result: Tensor = self.net(batch[0])
        return result

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Keeping(PreprocessedMixin, Net):
    pass


def trainer(path: Path, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "default_root_dir": path,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**settings | options)


def inputs(batches: list[Any]) -> Tensor:
    return torch.cat([batch[0] for batch in batches])
