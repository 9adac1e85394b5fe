"""Metrics and half precision that resemble the faulty ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from tests.advisor.faulty.epochs import Measured, Own, Reset, fit_of
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def reset_at_the_end() -> Arguments:
    return Reset(), digit_loaders()


@healthy
def reset_at_the_start() -> Arguments:
    class Start(Measured):
        def on_validation_epoch_start(self) -> None:
            self.acc.reset()

        def on_validation_epoch_end(self) -> None:
            self.log("val_acc", self.acc.compute())

    return Start(), digit_loaders()


@healthy
def one_metric_that_is_reset_between_splits() -> Arguments:
    class Between(Reset):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.net(batch[0])
            self.log("train_acc", self.acc(logits, batch[1]))
            return functional.cross_entropy(logits, batch[1])

        def on_validation_epoch_start(self) -> None:
            self.acc.reset()

    return Between(), digit_loaders()


@healthy
def metric_of_real_and_made_samples() -> Arguments:
    """Training adds the samples with which those of validation are compared."""

    class Distance(Metric):
        sums: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")

        def update(self, x: Tensor, real: bool) -> None:
            self.sums[int(real)] += x.detach().mean()

        def compute(self) -> Tensor:
            return (self.sums[0] - self.sums[1]).abs()

    class Compared(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.distance = Distance()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.distance.update(batch[0], real=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.distance.update(batch[0], real=False)

        def on_validation_epoch_end(self) -> None:
            self.log("distance", self.distance.compute())
            self.distance.reset()

    return Compared(), digit_loaders()


@healthy
def logged_itself() -> Arguments:
    return Own(), digit_loaders()


@healthy
def value_of_each_batch() -> Arguments:
    class Batches(Measured):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.net(batch[0])
            self.log("acc", self.train_acc(logits, batch[1]))
            return functional.cross_entropy(logits, batch[1])

    return Batches(), digit_loaders()


@healthy
def half_weights_with_a_large_eps() -> Arguments:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, eps=1e-4)

    return Task(mlp(64, 32, 10), optimizer=optimizer), digit_loaders(), fit_of("16-true")


@healthy
def half_weights_of_a_frozen_part() -> Arguments:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = mlp(64, 32).half().requires_grad_(False)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x.half()).float().relu())

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(p for p in parameters if p.requires_grad)

    return Task(Part(), optimizer=optimizer), digit_loaders()
