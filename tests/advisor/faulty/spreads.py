"""Focal losses of a mean, spreads in two roles, and weights that bfloat16 keeps."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional

from tests.advisor.plans import trainer
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    faulty,
    mlp,
)

_FOCAL = "reports of focal losses around a cross entropy with reduction='mean'"
_SPREAD = "a forecasting library that gave the standard deviation to GaussianNLLLoss"
_BFLOAT = "reports of pure bfloat16 whose weights hardly move"


@faulty("LP525", "net.3", source=_FOCAL)
def focal_factor_of_the_mean_cross_entropy() -> Arguments:
    def focal(logits: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(logits, y)
        return 0.25 * (1 - (-loss).exp()).square() * loss

    return Task(mlp(64, 64, 10), focal), digit_loaders()


@faulty("LP525", "net.3", source=_FOCAL)
def focal_factor_of_the_mean_before_each_loss() -> Arguments:
    """The factor is that of the batch, although the loss isn't reduced yet."""

    def focal(logits: Tensor, y: Tensor) -> Tensor:
        one_hot = functional.one_hot(y, 10).float()
        each = functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
        with torch.no_grad():
            factor = torch.pow(1 - torch.exp(-each.mean()), 2.0)
        return (factor * each).mean()

    return Task(mlp(64, 64, 10), focal), digit_loaders()


class Gaussian(LightningModule):
    """Predicts a mean and a spread.

    Args:
        loss: Function of the mean, the spread and the target.
        score: Function of the same, for validation.
        spread: Function of the spread's output.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        score: Callable[[Tensor, Tensor, Tensor], Tensor],
        spread: Callable[[Tensor], Tensor] = functional.softplus,
    ) -> None:
        super().__init__()
        self.net = mlp(10, 32, 2)
        self.loss, self.score, self.spread = loss, score, spread

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.net(x).chunk(2, 1)
        return mean, self.spread(spread)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mean, spread = self(batch[0])
        return self.loss(mean, spread, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        mean, spread = self(batch[0])
        self.log("val_score", self.score(mean, spread, batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def likelihood(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
    """Return the loss of a variance."""
    return functional.gaussian_nll_loss(mean, y, spread)


def normal(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
    """Return the loss of a standard deviation."""
    return -torch.distributions.Normal(mean, spread).log_prob(y).mean()


def covered(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
    """Return the share within the interval of 95 % of a standard deviation."""
    low, high = mean - 1.96 * spread, mean + 1.96 * spread
    return ((low < y) & (y < high)).float().mean()


@faulty("LP526", "net.3", source=_SPREAD)
def deviation_in_the_gaussian_loss() -> Arguments:
    return Gaussian(likelihood, covered), diabetes_loaders()


@faulty("LP526", "net.3", source="exp(log_var) as the scale of a normal distribution")
def variance_of_a_loss_written_out_in_samples() -> Arguments:
    def written_out(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (spread.log() + (y - mean) ** 2 / spread).mean()

    def sampled(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
        return (mean + spread * torch.randn_like(spread) - y).abs().mean()

    return Gaussian(written_out, sampled, torch.exp), diabetes_loaders()


@faulty("LP526", "net.3", source="Normal(mean, variance), whose root is taken in validation")
def variance_as_the_scale_of_normal() -> Arguments:
    def rooted(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
        return covered(mean, spread.sqrt(), y)

    return Gaussian(normal, rooted, torch.exp), diabetes_loaders()


def in_bfloat16(optimizer: Callable[[Any], Any], precision: Any = "bf16-true") -> Arguments:
    plan = trainer(precision=precision, max_epochs=20)
    return Task(mlp(64, 128, 10), optimizer=optimizer), digit_loaders(), plan


@faulty("LP673", source=_BFLOAT)
def adam_below_half_a_unit_of_bfloat16() -> Arguments:
    return in_bfloat16(lambda p: torch.optim.AdamW(p, 1e-5))


@faulty("LP673", source=_BFLOAT)
def gradients_below_half_a_unit_of_a_module_in_bfloat16() -> Arguments:
    class Halved(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(self.net(batch[0].bfloat16()).float(), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss = self.loss(self.net(batch[0].bfloat16()).float(), batch[1])
            self.log("val_loss", loss)

    net = mlp(64, 128, 10).bfloat16()
    return Halved(net, optimizer=lambda p: torch.optim.SGD(p, 1e-3)), digit_loaders()
