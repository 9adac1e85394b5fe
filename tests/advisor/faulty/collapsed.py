"""Variational autoencoders whose divergence outweighs the reconstruction."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from tests.advisor.faulty.variational import VAE
from tests.advisor.programs import Arguments, digit_loaders, digits, faulty, split


def summed(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the divergence, summed over the code and averaged over the samples."""
    return (-0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(dim=1)).mean()


def grey() -> Any:
    """Return loaders of the digits between 0 and 1."""
    x, y = digits()
    return split((x - x.min()) / (x.max() - x.min()), y)


class Likelihood(VAE):
    """Has the error of the reconstruction as a function of the reconstruction and the picture."""

    def __init__(self, error: Any, divergence: Any) -> None:
        super().__init__(divergence)
        self.error = error

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        h = functional.relu(self.net(x))
        mu, logvar = self.fc_mu(h), self.fc_logvar(h)
        recon = self.decoder(mu + torch.randn_like(mu) * torch.exp(logvar / 2))
        return self.error(recon, x) + self.divergence(mu, logvar)


@faulty("LP283", "fc_logvar", source="mse_loss of all pixels and a divergence that is summed")
def mean_error_and_summed_divergence() -> Arguments:
    return VAE(summed), digit_loaders()


@faulty("LP283", source="binary cross entropy by mean, and distributions summed over the batch")
def mean_cross_entropy_and_a_sum_over_the_batch() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        posterior = Normal(mu, torch.exp(0.5 * logvar))
        return kl_divergence(posterior, Normal(0.0, 1.0)).sum()

    error = functional.binary_cross_entropy_with_logits
    return Likelihood(error, divergence), grey()


@faulty("LP283", source="a squared error written out, averaged for each sample")
def mean_square_of_each_sample() -> Arguments:
    def error(recon: Tensor, x: Tensor) -> Tensor:
        return ((recon - x) ** 2).mean(dim=1).mean()

    return Likelihood(error, lambda mu, logvar: 2.0 * summed(mu, logvar)), digit_loaders()
