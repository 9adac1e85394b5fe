"""Quantile regressions whose loss has the error reversed."""

from typing import Any

import torch
from torch import Tensor

from tests.advisor.programs import Arguments, Task, diabetes_loaders, faulty, mlp

QUANTILES = (0.1, 0.5, 0.9)


def pinball(prediction: Tensor, y: Tensor) -> Tensor:
    q = torch.tensor(QUANTILES)
    error = y - prediction
    return torch.maximum(q * error, (q - 1) * error).mean()


def _right() -> Arguments:
    return Task(mlp(10, 32, 3), pinball), diabetes_loaders()


@faulty("LP284", "net.3", source="prediction minus target", mended=_right)
def prediction_minus_target() -> Arguments:
    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        q = torch.tensor(QUANTILES)
        error = prediction - y
        return torch.maximum(q * error, (q - 1) * error).mean()

    return Task(mlp(10, 32, 3), loss), diabetes_loaders()


@faulty("LP284", "net.3", source="a loop over quantiles with the sides of where exchanged")
def sides_exchanged() -> Arguments:
    class Quantiles(Task):
        def __init__(self) -> None:
            super().__init__(mlp(10, 32, 4))
            self.quantiles = [0.05, 0.25, 0.75, 0.95]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            out, losses = self.net(x), []
            for place, q in enumerate(self.quantiles):
                error = y[:, 0] - out[:, place]
                losses.append(torch.where(error >= 0, (1 - q) * error, -q * error))
            return torch.stack(losses).sum(dim=0).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Quantiles(), diabetes_loaders()
