"""Variational autoencoders whose divergence has a wrong sign."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp

Divergence = Callable[[Tensor, Tensor], Tensor]


class VAE(Task):
    """A variational autoencoder of the digits.

    Args:
        divergence: Function of the mean and the log variance of the code.
        total: Function of the error of the reconstruction and the divergence.
    """

    def __init__(
        self, divergence: Divergence, total: Callable[[Tensor, Tensor], Tensor] = torch.add
    ) -> None:
        super().__init__(mlp(64, 64, 32))
        self.fc_mu, self.fc_logvar = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = mlp(8, 64, 64)
        self.divergence, self.total = divergence, total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        h = functional.relu(self.net(x))
        mu, logvar = self.fc_mu(h), self.fc_logvar(h)
        std = torch.exp(0.5 * logvar)
        recon = self.decoder(mu + torch.randn_like(std) * std)
        loss = self.total(functional.mse_loss(recon, x), self.divergence(mu, logvar))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def kld(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * torch.mean(1 + logvar - mu.pow(2) - logvar.exp())


def _right() -> Arguments:
    return VAE(kld), digit_loaders()


@faulty("LP241", "fc_mu", "fc_logvar", source="recon - kld, as the ELBO has it", mended=_right)
def divergence_subtracted() -> Arguments:
    return VAE(kld, lambda recon, kl: recon - 0.1 * kl), digit_loaders()


@faulty("LP241", "fc_mu", source="-0.5 forgotten", mended=_right)
def divergence_without_its_minus() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        return 0.5 * torch.sum(1 + logvar - mu**2 - torch.exp(logvar), dim=1).mean()

    return VAE(divergence, lambda recon, kl: recon + 1e-2 * kl), digit_loaders()


@faulty("LP241", "fc_mu", source="the sign of mu² within the divergence", mended=_right)
def square_of_the_mean_added() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        terms = (1 + logvar).sum(-1) + mu.square().sum(-1) - logvar.exp().sum(-1)
        return -0.5 * terms.mean()

    def inside(mu: Tensor, logvar: Tensor) -> Tensor:
        return divergence(mu, logvar) * 0 + (-0.5 * (1 + logvar + mu * mu - logvar.exp())).mean()

    return VAE(inside), digit_loaders()


@faulty("LP241", "fc_logvar", source="the sign of the variance within the divergence")
def variance_rewarded() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        return -0.5 * torch.mean(torch.sum(1 + logvar - mu.pow(2) + logvar.exp(), 1))

    return VAE(divergence, lambda recon, kl: recon + 1e-3 * kl), digit_loaders()


@faulty("LP241", "fc_mu", source="kl_divergence of distributions, subtracted")
def divergence_of_distributions_subtracted() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        posterior = Normal(mu, functional.softplus(logvar) + 1e-3)
        prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
        return kl_divergence(posterior, prior).sum(dim=-1).mean()

    return VAE(divergence, lambda recon, kl: recon - 1e-3 * kl), digit_loaders()


@faulty("LP241", "fc_mu", source="an ELBO with both signs minus, returned with a minus")
def elbo_with_a_sign_too_many() -> Arguments:
    def elbo(recon: Tensor, kl: Tensor) -> Tensor:
        likelihood = -recon
        return -(likelihood + torch.tensor(0.01) * kl)

    return VAE(kld, elbo), digit_loaders()


@faulty("LP241", "fc_mu", source="the divergence by its standard deviation, subtracted")
def divergence_by_the_standard_deviation_subtracted() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        sigma = functional.softplus(logvar) + 1e-4
        return (0.5 * (mu**2 + sigma**2 - 1) - sigma.log()).mean().clamp(min=1e-6)

    return VAE(divergence, lambda recon, kl: recon - 0.1 * kl), digit_loaders()


class Sampled(VAE):
    """Draws codes by a function of the mean and the log variance."""

    def __init__(self, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(kld)
        self.draw = draw

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        h = functional.relu(self.net(x))
        mu, logvar = self.fc_mu(h), self.fc_logvar(h)
        recon = self.decoder(self.draw(mu, logvar))
        return functional.mse_loss(recon, x) + 1e-3 * self.divergence(mu, logvar)


@faulty("LP245", "fc_logvar", source="std = torch.exp(logvar)", mended=_right)
def code_by_the_variance() -> Arguments:
    def draw(mu: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(logvar)
        return mu + torch.randn_like(std) * std

    return Sampled(draw), digit_loaders()


@faulty("LP245", "fc_logvar", source="rand_like in place of randn_like", mended=_right)
def code_by_uniform_noise() -> Arguments:
    def draw(mu: Tensor, logvar: Tensor) -> Tensor:
        eps = torch.rand_like(mu)
        return eps.mul(logvar.mul(0.5).exp()).add_(mu)

    return Sampled(draw), digit_loaders()
