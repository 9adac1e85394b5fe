"""Healthy logarithms, close to those of probabilities that are computed from logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.logarithms import many_labels
from tests.advisor.programs import Arguments, healthy, mlp


@healthy
def log_sigmoid_of_both_sides() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return -(y * functional.logsigmoid(z) + (1 - y) * functional.logsigmoid(-z)).mean()

    return many_labels(loss)


@healthy
def softplus_of_both_sides() -> Arguments:
    """The discriminator's part of the loss of a GAN, as StyleGAN computes it."""
    return many_labels(
        lambda z, y: (y * functional.softplus(-z) + (1 - y) * functional.softplus(z)).mean()
    )


@healthy
def logarithm_of_a_positive_output() -> Arguments:
    """A Poisson likelihood whose rate is 1 plus an exponential unit."""

    def loss(rate: Tensor, y: Tensor) -> Tensor:
        return (rate - y * rate.log()).mean()

    return many_labels(lambda z, y: loss(1 + functional.elu(z) + 1e-3, y))


@healthy
def logarithm_of_a_sum_of_exponentials() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return -((z - z.logsumexp(dim=1, keepdim=True)) * y).sum(dim=1).mean()

    return many_labels(loss)


@healthy
def logarithm_of_a_share_of_all_inputs() -> Arguments:
    """InfoNCE: the share of the positive among the similarities, which are bounded."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        similar = torch.exp(functional.normalize(z) @ functional.normalize(z).T / 0.5)
        is_same = (y @ y.T) * (1 - torch.eye(len(y)))
        others = similar * (1 - torch.eye(len(y)))
        positive = (similar * is_same).sum(1) + 1e-6
        return -torch.log(positive / (others.sum(1) + 1e-6)).mean()

    return many_labels(loss, nn.Sequential(mlp(64, 32, 16)))
