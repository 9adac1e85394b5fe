"""Healthy programs with divergences, entropies and squares in their losses."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional

from tests.advisor.faulty.variational import VAE, Sampled, kld
from tests.advisor.programs import Arguments, Task, diabetes_loaders, digit_loaders, healthy, mlp


@healthy
def vae() -> Arguments:
    return VAE(kld), digit_loaders()


@healthy
def beta_vae_with_a_tensor_as_factor() -> Arguments:
    return VAE(kld, lambda recon, kl: recon + torch.tensor(4.0) * kl), digit_loaders()


@healthy
def negative_elbo() -> Arguments:
    return VAE(kld, lambda recon, kl: -(-recon - kl)), digit_loaders()


@healthy
def negative_elbo_of_likelihoods() -> Arguments:
    def total(recon: Tensor, kl: Tensor) -> Tensor:
        elbo = (-recon).sub(kl)
        return elbo.mul(-1)

    return VAE(lambda mu, logvar: (kld(mu, logvar) - 0.05).clamp(min=0.0), total), digit_loaders()


@healthy
def divergence_of_distributions() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        posterior = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
        prior = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
        return kl_divergence(posterior, prior).mean()

    return VAE(divergence, lambda recon, kl: recon + 0.01 * kl), digit_loaders()


@healthy
def divergence_without_the_constant() -> Arguments:
    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        return 0.5 * ((mu.square() + logvar.exp() - logvar).sum(1) - 8).mean()

    return VAE(divergence, lambda recon, kl: 10 * recon + kl / 100), digit_loaders()


@healthy
def capacity_of_the_divergence() -> Arguments:
    """Burgess et al., 2018: the distance of the divergence from a number."""
    return VAE(kld, lambda recon, kl: recon + (kl - 0.1).abs()), digit_loaders()


@healthy
def gaussian_likelihood_with_a_penalty() -> Arguments:
    """A log variance, its exponential and squares, but no divergence."""

    class Heteroscedastic(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            mean, log_variance = self.net(x).chunk(2, dim=1)
            nll = 0.5 * (log_variance + (y - mean) ** 2 * torch.exp(-log_variance))
            return nll.mean() + 1e-3 * log_variance.square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Heteroscedastic(mlp(10, 32, 2)), diabetes_loaders()


@healthy
def entropy_bonus() -> Arguments:
    """A policy gradient with a bonus for entropy, and a Gaussian policy."""

    class Policy(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            mean, log_std = self.net(x).chunk(2, dim=1)
            policy = Normal(mean, log_std.clamp(-3, 2).exp())
            action = policy.sample()
            reward = -(action - y).square()
            gain = (policy.log_prob(action) * (reward - reward.mean())).mean()
            return -gain - 0.01 * policy.entropy().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Policy(mlp(10, 32, 2)), diabetes_loaders()


@healthy
def entropy_maximised_over_a_batch() -> Arguments:
    """Mutual information: a bonus for the mean's entropy, a penalty for that of each sample."""

    class Cluster(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            p = self.net(batch[0]).softmax(dim=1)
            own = -(p * (p + 1e-8).log()).sum(dim=1).mean()
            mean = p.mean(dim=0)
            return own - -(mean * (mean + 1e-8).log()).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Cluster(mlp(64, 64, 10)), digit_loaders()


@healthy
def poisson_with_a_log_rate() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        counts = (y * 2).exp().clamp(0, 20).round()
        return (z.exp() - counts * z).mean() + 1e-3 * functional.relu(z).square().mean()

    return Task(mlp(10, 32, 1), loss), diabetes_loaders()


@healthy
def code_by_the_root_of_the_variance() -> Arguments:
    def draw(mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + logvar.exp().sqrt() * torch.randn(mu.shape)

    return Sampled(draw), digit_loaders()


@healthy
def code_by_log_standard_deviations() -> Arguments:
    """The divergence has the logarithm of the standard deviation, as the noise has."""

    class Deviations(Sampled):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            h = functional.relu(self.net(x))
            mu, log_std = self.fc_mu(h), self.fc_logvar(h)
            recon = self.decoder(self.draw(mu, log_std))
            kl = 0.5 * (mu**2 + (2 * log_std).exp() - 2 * log_std - 1).mean()
            other = (mu**2 + log_std.exp() ** 2).mean() / 2 - log_std.mean()
            return functional.mse_loss(recon, x) + 1e-3 * (kl + other)

    return Deviations(lambda mu, s: mu + torch.randn_like(s) * s.exp()), digit_loaders()
