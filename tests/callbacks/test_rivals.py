"""Callbacks of other packages that do the same work in the same Trainer."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_practices.callbacks import BestCheckpoint, EarlyStopping, LearningRateScheduler
from lightning_practices.mixins import EarlyStoppingMixin


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Stopping(EarlyStoppingMixin, Net):
    pass


class FinetuningScheduler(BaseFinetuning):
    """As finetuning-scheduler's: it is known by its package."""

    __module__ = "finetuning_scheduler.fts"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        kinds = (LightningEarlyStopping, BestCheckpoint)
        kept = [one for one in trainer.callbacks if not isinstance(one, kinds)]  # type: ignore[attr-defined]
        trainer.callbacks = kept  # type: ignore[attr-defined]

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        pass

    def finetune_function(self, *args: Any) -> None:
        pass


def fit(module: LightningModule, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=any(isinstance(one, BestCheckpoint) for one in callbacks),
        enable_model_summary=False, callbacks=[*callbacks],
    )  # fmt: skip
    data: DataLoader[Any] = DataLoader(list(torch.ones(2, 2)))  # type: ignore[arg-type]
    trainer.fit(module, data, data)
    return trainer


@pytest.mark.parametrize(
    ("own", "argument"),
    [
        (EarlyStopping("val_loss"), "early_stopping"),
        (BestCheckpoint("val_loss"), "checkpoint"),
        (LearningRateScheduler("cosine"), "schedule"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_finetuning_scheduler_is_refused(own: Any, argument: str) -> None:
    message = rf"FinetuningScheduler and {type(own).__name__} don't go .* by {argument}=None of"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Net(), own, FinetuningScheduler())


def test_finetuning_scheduler_is_refused_before_its_setup() -> None:
    with pytest.raises(MisconfigurationException, match="FinetuningScheduler and EarlyStopping"):
        fit(Stopping(), FinetuningScheduler())
    fit(Stopping(early_stopping=None), FinetuningScheduler())


def test_a_second_stopper_of_lightning() -> None:
    message = "EarlyStopping of 'other' and EarlyStopping of 'val_loss' may both end this fit"
    other = LightningEarlyStopping("other", strict=False)
    with pytest.warns(UserWarning, match=message):
        fit(Net(), EarlyStopping("val_loss"), other)
