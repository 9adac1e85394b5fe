"""Gradients that are accumulated by hand."""

from typing import Any

import torch
from torch import Tensor

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


class Accumulated(Task):
    """Steps after each second batch."""

    batches = 2

    def __init__(self) -> None:
        super().__init__(mlp(64, 32, 10), optimizer=lambda p: torch.optim.SGD(p, 0.1))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = self.loss(self.net(batch[0]), batch[1])
        self.manual_backward(self.scaled(loss))
        if (batch_idx + 1) % self.batches == 0:
            optimizer.step()
            self.clear(optimizer)
        return loss

    def scaled(self, loss: Tensor) -> Tensor:
        return loss / self.batches

    def clear(self, optimizer: Any) -> None:
        optimizer.zero_grad()


def accumulated() -> Arguments:
    return Accumulated(), digit_loaders()


@faulty("LP621", source="accumulation by hand without zero_grad", mended=accumulated)
def accumulation_never_cleared() -> Arguments:
    class Kept(Accumulated):
        def clear(self, optimizer: Any) -> None:
            pass

    return Kept(), digit_loaders()


@faulty("LP626", source="accumulation by hand without a division")
def accumulation_without_a_division() -> Arguments:
    class Added(Accumulated):
        def scaled(self, loss: Tensor) -> Tensor:
            return loss

    return Added(), digit_loaders()


@faulty("LP626", source="zero_grad at the start of each second batch")
def accumulation_cleared_at_the_start() -> Arguments:
    class Second(Accumulated):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            optimizer: Any = self.optimizers()
            if batch_idx % 2 == 0:
                optimizer.zero_grad()
            loss = self.loss(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            if batch_idx % 2:
                optimizer.step()
            return loss

    return Second(), digit_loaders()
