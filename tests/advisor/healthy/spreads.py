"""Focal losses, spreads and bfloat16, close to the faulty ones."""

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.spreads import Gaussian, covered, in_bfloat16, likelihood, normal
from tests.advisor.programs import Arguments, Task, diabetes_loaders, digit_loaders, healthy, mlp


@healthy
def focal_factor_of_each_sample() -> Arguments:
    def focal(logits: Tensor, y: Tensor) -> Tensor:
        each = functional.cross_entropy(logits, y, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()

    return Task(mlp(64, 64, 10), focal), digit_loaders()


@healthy
def loss_weighted_by_another_loss() -> Arguments:
    """Two losses of the same size, by the ratio of their means."""

    def balanced(logits: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(logits, y)
        other = functional.mse_loss(logits.softmax(1), functional.one_hot(y, 10).float())
        return loss + other * (loss / other).detach()

    return Task(mlp(64, 64, 10), balanced), digit_loaders()


@healthy
def deviation_squared_for_the_gaussian_loss() -> Arguments:
    def squared(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
        return likelihood(mean, spread**2, y)

    return Gaussian(squared, covered), diabetes_loaders()


@healthy
def variance_rooted_for_the_interval() -> Arguments:
    def rooted(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
        return covered(mean, spread.clamp(min=1e-6).sqrt(), y)

    return Gaussian(likelihood, rooted, torch.exp), diabetes_loaders()


@healthy
def deviation_in_both() -> Arguments:
    return Gaussian(normal, covered), diabetes_loaders()


@healthy
def mean_of_a_lognormal() -> Arguments:
    """Its logarithm is the mean plus half of the variance."""

    def lognormal(mean: Tensor, spread: Tensor, y: Tensor) -> Tensor:
        return (torch.exp(mean + 0.5 * spread) - y.exp()).abs().mean()

    return Gaussian(likelihood, lognormal, torch.exp), diabetes_loaders()


@healthy
def large_updates_in_bfloat16() -> Arguments:
    return in_bfloat16(lambda p: torch.optim.AdamW(p, 1e-3))


@healthy
def small_updates_with_weights_of_float32() -> Arguments:
    return in_bfloat16(lambda p: torch.optim.AdamW(p, 3e-5), "bf16-mixed")


@healthy
def updates_that_are_rounded_at_random() -> Arguments:
    """An optimizer of its own, which may keep what rounding loses."""

    class Rounding(torch.optim.AdamW):
        pass

    return in_bfloat16(lambda p: Rounding(p, 3e-5))
