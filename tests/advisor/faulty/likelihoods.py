"""Likelihoods whose predicted variance, or its logarithm, has the wrong sign."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, diabetes_loaders, faulty, mlp

Likelihood = Callable[[Tensor, Tensor, Tensor], Tensor]  # of mean, scale and target


class Scaled(Task):
    """A regression with a mean and a scale from two heads; the loss is a function of both."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__(mlp(10, 32, 32))
        self.mean, self.scale = nn.Linear(32, 1), nn.Linear(32, 1)
        self.likelihood = likelihood

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = functional.relu(self.net(x))
        return self.likelihood(self.mean(h), self.scale(h), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def gaussian(mean: Tensor, log_variance: Tensor, y: Tensor) -> Tensor:
    return (0.5 * log_variance + 0.5 * (y - mean) ** 2 * torch.exp(-log_variance)).mean()


def _right() -> Arguments:
    return Scaled(gaussian), diabetes_loaders()


@faulty("LP281", "scale", source="exp(log_var) in place of exp(-log_var)", mended=_right)
def error_times_the_variance() -> Arguments:
    def likelihood(mean: Tensor, s: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (s.exp() * functional.mse_loss(mean, y, reduction="none")).mean() + s.mean()

    return Scaled(likelihood), diabetes_loaders()


@faulty("LP281", "scale", source="the logarithm subtracted", mended=_right)
def logarithm_of_the_deviation_subtracted() -> Arguments:
    def likelihood(mean: Tensor, s: Tensor, y: Tensor) -> Tensor:
        deviation = functional.softplus(s) + 1e-3
        return (((mean - y) / deviation).square() / 2 - deviation.log()).sum(dim=1).mean()

    return Scaled(likelihood), diabetes_loaders()


@faulty("LP281", "net.3", source="two columns of one head, and Laplace's absolute error")
def absolute_error_times_the_scale() -> Arguments:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        weight = torch.exp(out[:, 1:].clamp(-10, 10))
        return torch.mean(torch.abs(out[:, :1] - y) * weight) + out[:, 1:].clamp(-10, 10).mean()

    return Task(mlp(10, 32, 2), loss), diabetes_loaders()


@faulty("LP281", source="losses of two tasks weighted by exp(s), with s added")
def uncertainty_of_tasks_with_one_sign() -> Arguments:
    class Tasks(Task):
        def __init__(self) -> None:
            super().__init__(mlp(10, 32, 2))
            self.s = nn.Parameter(torch.zeros(2))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            out = self.net(x)
            first = functional.mse_loss(out[:, :1], y)
            second = functional.binary_cross_entropy_with_logits(out[:, 1:], (y > 0).float())
            weights = torch.exp(self.s)
            return weights[0] * first + self.s[0] + weights[1] * second + self.s[1]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Tasks(), diabetes_loaders()
