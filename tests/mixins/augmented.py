"""Datamodules and modules of the tests of augmentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.mixins import DataPractices

COUNT, CLASSES = 14, 4
IMAGE = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))


def split(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 6, 6, generator=generator)
    return TensorDataset(x, torch.arange(count) % CLASSES)


class Plain(LightningDataModule):
    def __init__(self, workers: int = 0, batch_size: int = 4, **practices: Any) -> None:
        super().__init__(**practices)
        self.train, self.other = split(COUNT, 1), split(5, 2)
        self.options: dict[str, Any] = {"num_workers": workers, "batch_size": batch_size}

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, shuffle=True, **self.options)

    def val_dataloader(self) -> Any:
        return DataLoader(self.other, batch_size=5)

    test_dataloader = predict_dataloader = val_dataloader


class Data(DataPractices, Plain):
    pass


class Net(LightningModule):
    """Keeps the batches that its steps get; its weights depend on each bit of them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(3, 2, 3),
                nn.BatchNorm2d(2),
                nn.Dropout(0.3),
                nn.Flatten(),
                nn.Linear(32, 4),
            )
        self.got: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    @override
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.got["train"].append(batch)
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.got["val"].append(batch)
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.got["test"].append(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.got["predict"].append(batch)
        result: Tensor = self(batch[0])
        return result

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **settings | options)


def images(batches: list[Any]) -> Tensor:
    return torch.cat([batch[0] for batch in batches])


def rows(x: Tensor) -> set[bytes]:
    return {one.numpy().tobytes() for one in x}


class SaveAt(Callback):
    """Save a checkpoint after a step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fitted(
    data: LightningDataModule, *callbacks: Callback, module: Callable[[], Net] = Net,
    resume: Path | None = None, **options: Any,
) -> Net:  # fmt: skip
    net = module()
    trainer(*callbacks, **options).fit(net, datamodule=data, ckpt_path=resume)
    return net
