"""Variational autoencoders whose terms are sums, means, or weighted on purpose."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.collapsed import Likelihood, grey, summed
from tests.advisor.faulty.variational import VAE
from tests.advisor.programs import Arguments, digit_loaders, digits, healthy, split


@healthy
def sums_of_samples() -> Arguments:
    def error(recon: Tensor, x: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(recon, x, reduction="sum") / len(x)

    return Likelihood(error, summed), grey()


@healthy
def divergence_divided_by_the_pixels() -> Arguments:
    return VAE(lambda mu, logvar: summed(mu, logvar) / 64), digit_loaders()


@healthy
def divergence_with_a_small_factor() -> Arguments:
    return VAE(summed, lambda recon, kl: recon + 0.00025 * kl), digit_loaders()


@healthy
def divergence_that_is_warmed_up() -> Arguments:
    class Warmed(VAE):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            share = min(1.0, self.global_step / 1000) / 64
            self.total = lambda recon, kl: recon + share * kl
            return super().training_step(batch, batch_idx)

    return Warmed(summed), digit_loaders()


@healthy
def free_bits() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        each = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).mean(dim=0)
        return each.clamp(min=0.25).sum()

    return VAE(divergence), digit_loaders()


@healthy
def averaged_error_of_large_numbers() -> Arguments:
    """Grey values up to 16: their variance is worth many nats."""
    x, y = digits()
    return VAE(summed), split(8 * x, y)


@healthy
def mean_error_with_a_variance() -> Arguments:
    """A likelihood of a small variance, divided by the number of pixels nowhere."""

    def error(recon: Tensor, x: Tensor) -> Tensor:
        return 64 * functional.mse_loss(recon, x) / (2 * 0.5)

    return Likelihood(error, summed), digit_loaders()
