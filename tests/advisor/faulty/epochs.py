"""Metrics over epochs and splits, and optimizers of half precision weights."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional
from torchmetrics import Accuracy, MeanSquaredError, MetricCollection

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


class Measured(Task):
    """A classifier with metrics."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 32, 10))
        self.train_acc = Accuracy("multiclass", num_classes=10)
        self.acc = Accuracy("multiclass", num_classes=10)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", functional.cross_entropy(logits, batch[1]))
        self.acc.update(logits, batch[1])


class Reset(Measured):
    def on_validation_epoch_end(self) -> None:
        self.log("val_acc", self.acc.compute())
        self.acc.reset()


def _reset() -> Arguments:
    return Reset(), digit_loaders()


@faulty("LP661", "acc", source="compute at the epoch's end without reset", mended=_reset)
def computed_and_not_reset() -> Arguments:
    class Kept(Measured):
        def on_validation_epoch_end(self) -> None:
            self.log("val_acc", self.acc.compute())

    return Kept(), digit_loaders()


@faulty("LP661", "metrics.mse", source="a collection computed in on_train_epoch_end")
def collection_not_reset() -> Arguments:
    class Kept(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.metrics = MetricCollection({"mse": MeanSquaredError()})

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.net(batch[0])
            one_hot = functional.one_hot(batch[1], 10).float()
            self.metrics(logits.softmax(1), one_hot)
            return functional.cross_entropy(logits, batch[1])

        def on_train_epoch_end(self) -> None:
            self.log_dict(self.metrics.compute())

    return Kept(), digit_loaders()


class Own(Measured):
    """Logs a metric for each split."""

    def common(self, batch: Any, stage: str, metric: Any) -> Tensor:
        logits = self.net(batch[0])
        loss = functional.cross_entropy(logits, batch[1])
        metric(logits, batch[1])
        self.log(f"{stage}_loss", loss)
        self.log(f"{stage}_acc", metric, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.common(batch, "train", self.train_acc)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.common(batch, "val", self.acc)


def _own() -> Arguments:
    return Own(), digit_loaders()


@faulty("LP662", "acc", source="one metric in a step that both splits share", mended=_own)
def one_metric_for_both() -> Arguments:
    class Shared(Own):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.common(batch, "train", self.acc)

    return Shared(), digit_loaders()


@faulty("LP662", "acc", source="one metric, logged for step and epoch")
def one_metric_logged_twice() -> Arguments:
    class Shared(Measured):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.net(batch[0])
            self.acc(logits, batch[1])
            self.log("acc", self.acc, on_step=True, on_epoch=True)
            return functional.cross_entropy(logits, batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.acc.update(self.net(batch[0]), batch[1])
            self.log("val_acc", self.acc)

    return Shared(), digit_loaders()


@faulty("LP662", "acc", source="forward of one metric in both steps, computed after validation")
def one_metric_that_goes_on() -> Arguments:
    class Shared(Reset):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.net(batch[0])
            self.log("train_acc", self.acc(logits, batch[1]))
            return functional.cross_entropy(logits, batch[1])

    return Shared(), digit_loaders()


@faulty("LP662", "acc", source="one metric updated by both steps, and logged by validation")
def one_metric_that_validation_logs() -> Arguments:
    class Shared(Measured):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.net(batch[0])
            self.log("batch_acc", self.acc(logits, batch[1]), prog_bar=True)
            return functional.cross_entropy(logits, batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.acc.update(self.net(batch[0]), batch[1])
            self.log("val_acc", self.acc)

    return Shared(), digit_loaders()


def fit_of(precision: Any) -> Trainer:
    return Trainer(
        max_epochs=2, accelerator="cpu", precision=precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip


def _mixed() -> Arguments:
    return Task(mlp(64, 32, 10)), digit_loaders(), fit_of("bf16-mixed")


@faulty("LP663", source="precision='16-true' with Adam", mended=_mixed)
def adam_of_half_weights() -> Arguments:
    return Task(mlp(64, 32, 10)), digit_loaders(), fit_of("16-true")


@faulty("LP663", source="a model made half by hand, with AdamW")
def model_made_half() -> Arguments:
    class Half(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.cross_entropy(self.net(batch[0].half()).float(), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Half(mlp(64, 32, 10).half(), optimizer=torch.optim.AdamW), digit_loaders()
