"""Flows and deviations whose scale has no term in the loss."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

from tests.advisor.faulty.likelihoods import Scaled
from tests.advisor.programs import Arguments, Task, diabetes, diabetes_loaders, faulty, mlp, split


class Coupling(nn.Module):
    """Scales and shifts the even or odd features by functions of the others."""

    mask: Tensor

    def __init__(self, parity: int, *, scales: bool = True) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(10) % 2 == parity).float())
        self.net = mlp(10, 32, 20)
        self.scales = scales

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = x * self.mask
        s, t = self.net(kept).chunk(2, dim=1)
        s = torch.tanh(s) * (1 - self.mask) if self.scales else torch.zeros_like(s)
        return kept + (1 - self.mask) * (x * torch.exp(s) + t), s.sum(dim=1)


class Flow(Task):
    """A flow, whose loss is a function of the codes and the log-determinant."""

    def __init__(self, likelihood: Any, **options: Any) -> None:
        super().__init__(nn.ModuleList(Coupling(i % 2, **options) for i in range(4)))
        self.likelihood = likelihood

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z, log_det = batch[0], 0.0
        for layer in self.net:
            z, each = layer(z)
            log_det = log_det + each
        return self.likelihood(z, log_det)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 5e-3)


def wide() -> Any:
    """Return loaders of features with a standard deviation of 2."""
    x, y = diabetes()
    return split(2 * x, y)


def whole(z: Tensor, log_det: Tensor) -> Tensor:
    return -(Normal(0.0, 1.0).log_prob(z).sum(dim=1) + log_det).mean()


def _right() -> Arguments:
    return Flow(whole), wide()


@faulty("LP285", source="log_det computed and left out", mended=_right)
def codes_alone() -> Arguments:
    return Flow(lambda z, log_det: -Normal(0.0, 1.0).log_prob(z).sum(dim=1).mean()), wide()


@faulty("LP285", source="squares of codes, with features split and joined and a trained scale")
def squares_of_scaled_halves() -> Arguments:
    class Halves(Task):
        def __init__(self) -> None:
            super().__init__(mlp(5, 32, 5))
            self.log_scale = nn.Parameter(torch.zeros(10))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0] * self.log_scale.exp()
            first, second = x[:, :5], x[:, 5:]
            z = torch.cat([first, second * functional.softplus(self.net(first))], dim=-1)
            return z.square().sum(-1).div(2).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Halves(), diabetes_loaders()


@faulty("LP285", source="an error divided by its predicted deviation, without the logarithm")
def error_by_its_deviation() -> Arguments:
    def likelihood(mean: Tensor, s: Tensor, y: Tensor) -> Tensor:
        return (0.5 * ((y - mean) / torch.exp(s)) ** 2).mean()

    return Scaled(likelihood), diabetes_loaders()
