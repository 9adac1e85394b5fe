"""Plans of fits on several ranks, and of trials, and optimizers that share all parameters."""

from typing import Any

import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.plans import Planned, adamw, stopped, trainer
from tests.advisor.programs import Arguments, Task, diabetes_loaders, digit_loaders, faulty, mlp

RANKS = {"devices": 2, "strategy": "ddp"}


class Ranks(Task):
    """Logs a loss and an accuracy in validation.

    Args:
        options: Arguments of ``log``.
        metric: A metric of torchmetrics that is logged in place of the tensor, or ``None``.
    """

    def __init__(self, metric: nn.Module | None = None, **options: Any) -> None:
        super().__init__(mlp(64, 64, 10))
        self.metric: Any = metric
        self.options = options

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x)
        if self.metric is not None:
            self.metric.update(logits, y)
            self.log("val_acc", self.metric)
            return
        self.log("val_loss", functional.cross_entropy(logits, y), **self.options)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), **self.options)


def accuracy() -> nn.Module:
    return torchmetrics.Accuracy("multiclass", num_classes=10)


@faulty("LP652", source="early stopping under DDP by the loss of each rank", also=["LP653"])
def stopped_by_the_loss_of_a_rank() -> Arguments:
    return Ranks(), digit_loaders(), trainer(callbacks=[EarlyStopping("val_loss")], **RANKS)


@faulty("LP652", source="the best checkpoint by the accuracy of rank 0", also=["LP653"])
def checkpoint_by_the_accuracy_of_a_rank() -> Arguments:
    kept = ModelCheckpoint(monitor="val_acc", mode="max")
    plan = trainer(callbacks=[kept], enable_checkpointing=True, **RANKS)
    return Ranks(), digit_loaders(), plan


@faulty("LP653", source="a validation loss without sync_dist under DDP")
def losses_of_a_rank() -> Arguments:
    return Ranks(), digit_loaders(), trainer(**RANKS)


@faulty("LP654", source="a batch that was to be learnt by heart, once")
def overfit_batches_left_over() -> Arguments:
    return stopped(overfit_batches=1)


@faulty("LP654", source="a share of the batches")
def share_of_batches_left_over() -> Arguments:
    return Planned(adamw), digit_loaders(), trainer(overfit_batches=0.1)


@faulty("LP655", source="a trial of ten batches")
def limit_left_over() -> Arguments:
    return stopped(limit_train_batches=10)


@faulty("LP655", source="a trial of some batches")
def fast_run_left_over() -> Arguments:
    return stopped(fast_dev_run=3)


class Adversaries(Task):
    """A generator and a critic, whose optimizers hold what a function of both returns."""

    def __init__(self, *held: str, is_written_apart: bool = False) -> None:
        super().__init__(mlp(10, 32, 1))
        self.automatic_optimization = False
        self.generator, self.held = mlp(4, 32, 10), held
        self.is_written_apart = is_written_apart

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x = batch[0]
        first, second = self.optimizers()  # type: ignore[misc]
        fake = self.generator(torch.randn(len(x), 4))
        self._step(second, self._critic_loss(x, fake.detach()))
        self._step(first, self._loss(self.net(fake), 1.0))

    def _critic_loss(self, x: Tensor, fake: Tensor) -> Tensor:
        if self.is_written_apart:
            return (
                functional.softplus(-self.net(x)).mean()
                + functional.softplus(self.net(fake)).mean()
            )
        return self._loss(self.net(x), 1.0) + self._loss(self.net(fake), 0.0)

    def _loss(self, logits: Tensor, target: float) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.get_submodule(name).parameters()) for name in self.held]


@faulty("LP106", "generator", "net", source="GANs: both optimizers got self.parameters()")
def both_optimizers_hold_all() -> Arguments:
    return Adversaries("", ""), diabetes_loaders()[0]


@faulty("LP106", "generator", "net", source="the same with losses that are written out")
def both_optimizers_hold_all_by_softplus() -> Arguments:
    return Adversaries("", "", is_written_apart=True), diabetes_loaders()[0]
