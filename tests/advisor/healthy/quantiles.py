"""Healthy quantile regressions, and losses with slopes that differ."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.quantiles import pinball
from tests.advisor.programs import Arguments, Task, diabetes_loaders, healthy, mlp


@healthy
def quantiles_of_three_heads() -> Arguments:
    return Task(mlp(10, 32, 3), pinball), diabetes_loaders()


@healthy
def decreasing_quantiles_without_crossings() -> Arguments:
    """Gaps that are summed up from the highest quantile on, and a penalty."""

    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(10, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            top, gaps = self.net(x).split([1, 2], dim=1)
            return torch.cat([top, top - functional.softplus(gaps).cumsum(dim=1)], dim=1)

    class Quantiles(Task):
        q: Tensor

        def __init__(self) -> None:
            super().__init__(Ordered())
            self.register_buffer("q", torch.tensor([0.8, 0.5, 0.2]))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            out = self.net(x)
            error = out - y
            loss = torch.where(error > 0, (1 - self.q) * error, -self.q * error)
            return loss.mean() + 1e-4 * out.square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("val_loss", functional.l1_loss(self.net(x)[:, 1:2], y))

    return Quantiles(), diabetes_loaders()


@healthy
def absolute_errors_of_several_targets() -> Arguments:
    """Constants between 0 and 1 that are weights of outputs."""

    class Weighted(Task):
        def __init__(self) -> None:
            super().__init__(mlp(10, 32, 3))
            self.weights = (0.2, 0.3, 0.5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            errors = (self.net(x) - torch.cat([y, y.square(), y.sign()], dim=1)).abs()
            return (errors * torch.tensor(self.weights)).sum(dim=1).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Weighted(), diabetes_loaders()
