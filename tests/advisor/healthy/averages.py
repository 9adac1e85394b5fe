"""Copies of a network that follow it as fast as the fit asks for, or slowly on purpose."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.averages import Copied
from tests.advisor.plans import trainer
from tests.advisor.programs import Arguments, digit_loaders, healthy


@healthy
def copy_that_a_hook_moves() -> Arguments:
    return Copied(0.9), digit_loaders(), trainer(max_epochs=5)


@healthy
def copy_whose_decay_grows() -> Arguments:
    class Growing(Copied):
        updates = 0

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.updates += 1
            self.decay = min(0.9999, (1 + self.updates) / (10 + self.updates))
            super().on_train_batch_end(outputs, batch, batch_idx)

    return Growing(0.0), digit_loaders(), trainer(max_epochs=5)


@healthy
def slow_teacher_in_the_step() -> Arguments:
    """Tarvainen and Valpola, 2017: the copy teaches, and also validates."""

    class Taught(Copied):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            out = self.net(x)
            with torch.no_grad():
                taught = self.average(x + 0.1 * torch.randn_like(x)).softmax(dim=1)
            return self.loss(out, y) + functional.mse_loss(out.softmax(dim=1), taught)

    return Taught(0.999), digit_loaders(), trainer(max_epochs=5)


@healthy
def frozen_copy_that_stays() -> Arguments:
    """The first weights, with which validation compares."""

    class First(Copied):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            pass

    return First(0.0), digit_loaders(), trainer(max_epochs=5)


@healthy
def copy_in_half_precision() -> Arguments:
    class Half(Copied):
        def __init__(self) -> None:
            super().__init__(0.9)
            self.average.bfloat16()

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            for a, p in zip(self.average.parameters(), self.net.parameters(), strict=True):
                a.lerp_(p.detach().bfloat16(), 1 - self.decay)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("val_loss", self.loss(self.average(x.bfloat16()).float(), y))

    return Half(), digit_loaders(), trainer(max_epochs=5)
