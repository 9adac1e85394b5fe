"""Logarithms of probabilities that are computed from logits in two steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


def many_labels(
    loss: Callable[[Tensor, Tensor], Tensor], net: nn.Module | None = None
) -> Arguments:
    """Return a classifier whose loss gets one number for each class, and one-hot targets."""

    def of_classes(x: Tensor, y: Tensor) -> Tensor:
        return loss(x, functional.one_hot(y, 10).float())

    return Task(net or mlp(64, 32, 10), of_classes), digit_loaders()


@faulty("LP230", "net.3", source="binary cross entropy in one line")
def binary_cross_entropy_in_one_line() -> Arguments:
    return many_labels(
        lambda z, y: -(y * torch.log(z.sigmoid()) + (1 - y) * torch.log(1 - z.sigmoid())).mean()
    )


@faulty("LP230", "net.1", source="a GAN's loss of a discriminator that ends in a sigmoid")
def loss_of_probabilities_in_two_lines() -> Arguments:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        first = y * (p + 1e-6).log()
        second = (1 - y) * torch.log1p(-p)
        return -(first + second).mean()

    return many_labels(loss, nn.Sequential(mlp(64, 32, 10), nn.Sigmoid()))


@faulty("LP230", source="a choice between p and 1 - p, with a sigmoid that is written out")
def chosen_side_of_a_written_sigmoid() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = (1 / (1 + torch.exp(-z))).clamp(1e-6, 1 - 1e-6)
        return -torch.where(y > 0, p, 1 - p).log().mean()

    return many_labels(loss)


@faulty("LP212", "net.3", source="a softmax in one line with its logarithm")
def softmax_and_logarithm_in_one_line() -> Arguments:
    def loss(z: Any, y: Tensor) -> Tensor:
        picked: Tensor = torch.log(torch.exp(z) / torch.exp(z).sum(1, keepdim=True))[y > 0]
        return -picked.mean()

    return many_labels(loss)
