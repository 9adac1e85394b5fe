"""Fits that log known numbers, and pictures that aren't drawn, for they take half a second each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import LearningCurves
from lightning_practices.callbacks._curves import learning_curves as _learning_curves

BATCHES = 4  # an epoch
RATE = 0.1

Points = list[tuple[int, float]]


class Logged(LightningModule):
    """Logs the number of the batch, from 1 in each fit, and scripted values of validation."""

    def __init__(self, values: Sequence[float] = (3.0, 1.0, 2.0, 4.0, 5.0, 6.0)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 1)
        self.values = values
        self.batches = 0

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        number = torch.tensor(float(self.trainer.current_epoch * BATCHES + batch_idx + 1))
        self.log("train_loss", number, on_step=True, on_epoch=True)
        self.log("same", 7.0)
        loss: Tensor = self.net(batch).square().mean()
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    @override
    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self.log("val_loss", -1e9)  # would be the best of all
            return
        self.log("val_loss", self.values[self.trainer.current_epoch])

    @override
    def on_train_epoch_end(self) -> None:
        self.log("late", float(self.trainer.current_epoch))

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loaders() -> tuple[DataLoader[Tensor], DataLoader[Tensor]]:
    rows = list(torch.randn(2 * BATCHES, 2, generator=torch.Generator().manual_seed(1)))
    return DataLoader(rows, batch_size=2), DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 3, "logger": False
    }  # fmt: skip
    return Trainer(
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **defaults | options,
    )


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(module, *loaders(), ckpt_path=resume)
    return trainer


class Drawn:
    """What stands for pictures: of each the title and the best."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.best: list[Any] = []

    def draw(self, series: Any, best: Any, title: str, marks: Any) -> None:
        self.titles.append(title)
        self.best.append(best)

    @property
    def steps(self) -> list[int]:
        """Return after how many optimizer steps each was drawn."""
        return [int(title.split()[1].replace(",", "")) for title in self.titles]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Count pictures in place of drawing them."""
    drawn = Drawn()
    monkeypatch.setattr(_learning_curves, "draw", drawn.draw)
    monkeypatch.setattr(_learning_curves, "rendered", lambda *_: b"a picture")
    return drawn


def curves_in(folder: Path, **options: Any) -> LearningCurves:
    return LearningCurves(folder / "curves.png", **options)
