"""Fits on several ranks whose values are those of all, and optimizers that share parameters."""

from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from tests.advisor.faulty.trials import RANKS, Adversaries, Ranks, accuracy
from tests.advisor.plans import Planned, adamw, trainer
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    digits,
    healthy,
    mlp,
)


@healthy
def values_of_all_ranks() -> Arguments:
    plan = trainer(callbacks=[EarlyStopping("val_loss")], **RANKS)
    return Ranks(sync_dist=True), digit_loaders(), plan


@healthy
def metrics_of_all_ranks() -> Arguments:
    plan = trainer(callbacks=[EarlyStopping("val_acc", mode="max")], **RANKS)
    return Ranks(accuracy()), digit_loaders(), plan


class Computed(Ranks):
    """Logs what a metric has computed of all ranks."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.metric.update(self.net(x), y)

    def on_validation_epoch_end(self) -> None:
        self.log("val_acc", self.metric.compute())
        self.metric.reset()


@healthy
def metrics_that_are_computed() -> Arguments:
    plan = trainer(callbacks=[EarlyStopping("val_acc", mode="max")], **RANKS)
    return Computed(accuracy()), digit_loaders(), plan


class Stream(IterableDataset[Any]):
    """Images without an end."""

    def __iter__(self) -> Any:
        x, y = digits()
        while True:
            order = torch.randperm(len(x))
            yield from zip(x[order], y[order], strict=True)


@healthy
def limited_stream() -> Arguments:
    return Planned(adamw), DataLoader(Stream(), 64), trainer(limit_train_batches=50)


@healthy
def adversaries_with_their_own_optimizers() -> Arguments:
    return Adversaries("generator", "net"), diabetes_loaders()[0]


class Switching(Task):
    """Goes from Adam to SGD after some epochs."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 10))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()[self.current_epoch >= 5]  # type: ignore[index]
        loss = functional.cross_entropy(self.net(x), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters()), torch.optim.SGD(self.parameters(), 0.1)


@healthy
def adam_and_then_sgd() -> Arguments:
    return Switching(), digit_loaders()
