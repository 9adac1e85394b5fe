"""Healthy likelihoods with predicted variances, precisions and uncertainties."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Laplace, Normal
from torch.nn import functional

from tests.advisor.faulty.likelihoods import Scaled, gaussian
from tests.advisor.programs import Arguments, Task, diabetes_loaders, healthy, mlp


@healthy
def gaussian_by_its_log_variance() -> Arguments:
    return Scaled(gaussian), diabetes_loaders()


@healthy
def gaussian_by_its_log_precision() -> Arguments:
    """The precision multiplies the error, and its logarithm is subtracted."""

    def likelihood(mean: Tensor, s: Tensor, y: Tensor) -> Tensor:
        return (s.exp() * (y - mean).square() - s).mean() / 2

    return Scaled(likelihood), diabetes_loaders()


@healthy
def likelihoods_of_distributions() -> Arguments:
    def likelihood(mean: Tensor, s: Tensor, y: Tensor) -> Tensor:
        deviation = functional.softplus(s) + 1e-3
        laplace = -Laplace(mean, deviation).log_prob(y).mean()
        return laplace - Normal(mean, deviation).log_prob(y).mean()

    return Scaled(likelihood), diabetes_loaders()


@healthy
def likelihood_weighted_by_its_variance() -> Arguments:
    """Seitzer et al., 2022: each sample's likelihood times a power of its detached variance."""

    def likelihood(mean: Tensor, s: Tensor, y: Tensor) -> Tensor:
        variance = s.clamp(-10, 10).exp()
        nll = 0.5 * ((y - mean) ** 2 / variance + variance.log() + math.log(2 * math.pi))
        return (nll * variance.detach() ** 0.5).mean()

    return Scaled(likelihood), diabetes_loaders()


@healthy
def uncertainty_of_tasks() -> Arguments:
    class Tasks(Task):
        def __init__(self) -> None:
            super().__init__(mlp(10, 32, 2))
            self.s = nn.Parameter(torch.zeros(2))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            out = self.net(x)
            first = functional.mse_loss(out[:, :1], y)
            second = functional.binary_cross_entropy_with_logits(out[:, 1:], (y > 0).float())
            losses = torch.stack([first, second])
            return (torch.exp(-self.s) * losses + self.s).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Tasks(), diabetes_loaders()


@healthy
def errors_weighted_by_an_attention() -> Arguments:
    """A weight from the network that a penalty of its own keeps small."""

    def likelihood(mean: Tensor, s: Tensor, y: Tensor) -> Tensor:
        weight = s.sigmoid()
        return (weight * (y - mean) ** 2).mean() - 0.1 * weight.log().mean()

    return Scaled(likelihood), diabetes_loaders()
