"""Weights over the batch, codes without gradient, likelihoods without a minus, several labels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence
from torch.nn import functional

from tests.advisor.faulty.variational import kld
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    digits,
    faulty,
    mlp,
    split,
)

Pool = Callable[[Tensor, Tensor], Tensor]


class Pooled(Task):
    """Attends to the rows of an image, and sums them by their weights.

    Args:
        pool: Function of the scores, shape (batch, rows), and the rows' features.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__(nn.Linear(8, 32), optimizer=lambda p: torch.optim.Adam(p, 1e-2))
        self.score, self.head = nn.Linear(32, 1), nn.Linear(32, 10)
        self.pool = pool

    def logits(self, x: Tensor) -> Tensor:
        rows = functional.relu(self.net(x.squeeze(1)))[:, :7]
        out: Tensor = self.head(self.pool(self.score(rows).squeeze(-1), rows))
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self.logits(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self.logits(x), y))


def pooled_by_a_sum(dim: int) -> Pool:
    return lambda scores, rows: (scores.softmax(dim).unsqueeze(-1) * rows).sum(1)


def pooled_by_a_product(dim: int) -> Pool:
    return lambda scores, rows: torch.bmm(scores.softmax(dim)[:, None], rows).squeeze(1)


def pooled_by_einsum(dim: int) -> Pool:
    return lambda scores, rows: torch.einsum("bt,btd->bd", scores.softmax(dim), rows)


def _pooled() -> Arguments:
    return Pooled(pooled_by_a_sum(1)), digit_loaders()


@faulty("LP206", "score", source="attention pooling with dim=0", mended=_pooled, also=["LP113"])
def weights_over_the_batch() -> Arguments:
    return Pooled(pooled_by_a_sum(0)), digit_loaders()


@faulty("LP206", "score", source="attention pooling by bmm", mended=_pooled, also=["LP113"])
def weights_over_the_batch_in_a_product() -> Arguments:
    return Pooled(pooled_by_a_product(0)), digit_loaders()


@faulty("LP206", "score", source="attention pooling by einsum", mended=_pooled, also=["LP113"])
def weights_over_the_batch_in_einsum() -> Arguments:
    return Pooled(pooled_by_einsum(0)), digit_loaders()


class Sampled(Task):
    """A variational autoencoder of the digits.

    Args:
        code: Function of the mean and the log variance that draws the code.
        divergence: Function of both.
    """

    def __init__(
        self,
        code: Callable[[Tensor, Tensor], Tensor],
        divergence: Callable[[Tensor, Tensor], Tensor] = kld,
    ) -> None:
        super().__init__(mlp(64, 64, 32))
        self.fc_mu, self.fc_logvar = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = mlp(8, 64, 64)
        self.code, self.divergence = code, divergence

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        h = functional.relu(self.net(x))
        mu, logvar = self.fc_mu(h), self.fc_logvar(h)
        recon = self.decoder(self.code(mu, logvar))
        loss = functional.mse_loss(recon, x) + 1e-2 * self.divergence(mu, logvar)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def of_distributions(mu: Tensor, logvar: Tensor) -> Tensor:
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return kl_divergence(Normal(mu, (0.5 * logvar).exp()), prior).mean()


def by_rsample(mu: Tensor, logvar: Tensor) -> Tensor:
    return Normal(mu, (0.5 * logvar).exp()).rsample()


def reparametrised() -> Arguments:
    return Sampled(by_rsample), digit_loaders()


@faulty("LP249", "fc_mu", source="sample() in place of rsample()", mended=reparametrised)
def code_by_sample() -> Arguments:
    def code(mu: Tensor, logvar: Tensor) -> Tensor:
        return Normal(mu, (0.5 * logvar).exp()).sample()

    return Sampled(code), digit_loaders()


@faulty("LP249", "fc_mu", source="torch.normal, whose gradient is 0", mended=reparametrised)
def code_by_torch_normal() -> Arguments:
    def code(mu: Tensor, logvar: Tensor) -> Tensor:
        return torch.normal(mu, torch.exp(0.5 * logvar))

    return Sampled(code), digit_loaders()


@faulty("LP249", "fc_mu", source="mean and deviation detached", mended=reparametrised)
def code_of_detached_values() -> Arguments:
    def code(mu: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(0.5 * logvar.detach())
        return mu.detach() + torch.randn_like(std) * std

    return Sampled(code), digit_loaders()


def normal_of(out: Tensor) -> Normal:
    mean, log_std = out.chunk(2, dim=1)
    return Normal(mean, log_std.exp())


def negative_log_likelihood(out: Tensor, y: Tensor) -> Tensor:
    return -normal_of(out).log_prob(y).mean()


def log_likelihood(out: Tensor, y: Tensor) -> Tensor:
    return normal_of(out).log_prob(y).mean()


def _likelihood() -> Arguments:
    return Task(mlp(10, 32, 2), negative_log_likelihood), diabetes_loaders()


@faulty("LP221", "net.3", source="log_prob without a minus", mended=_likelihood)
def normal_likelihood_without_minus() -> Arguments:
    return Task(mlp(10, 32, 2), log_likelihood), diabetes_loaders()


def _classes() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()


@faulty("LP221", "net.3", source="the same of classes", mended=_classes)
def categorical_likelihood_without_minus() -> Arguments:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return Categorical(logits=out).log_prob(y).mean()

    return Task(mlp(64, 64, 10), loss), digit_loaders()


def labels_of_digits() -> tuple[Tensor, Tensor]:
    """Return digits and four labels each: even, above 4, a multiple of 3, and below 2."""
    x, y = digits()
    return x, torch.stack([y % 2 == 0, y > 4, y % 3 == 0, y < 2], dim=1).float()


@faulty("LP254", "net.3", source="several labels at a time with cross entropy")
def several_labels_and_softmax() -> Arguments:
    return Task(mlp(64, 64, 4)), split(*labels_of_digits())


@faulty("LP254", "net.3", source="tags of a picture, by a convolution")
def several_labels_by_a_layer() -> Arguments:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Task(net, criterion), split(*labels_of_digits())


@faulty("LP216", "net.3", source="classes that are counted from 1", mended=_classes)
def classes_from_one() -> Arguments:
    x, y = digits()
    return Task(mlp(64, 64, 10)), split(x, y + 1)
