"""Healthy programs that clamp and rectify by other functions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.outputs import Within
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes,
    diabetes_loaders,
    digit_loaders,
    healthy,
    mlp,
    split,
)


@healthy
def rectifiers_of_hidden_layers_by_other_functions() -> Arguments:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 32)
            self.third, self.last = nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x.flatten(1))
            h = self.second(torch.maximum(h, torch.zeros_like(h)))
            h = self.third(h * (h > 0))
            logits: Tensor = self.last(torch.where(h > 0, h, 0.0))
            return logits

    return Task(Net()), digit_loaders()


@healthy
def counts_kept_above_zero() -> Arguments:
    x, y = diabetes()
    net = Within(mlp(10, 32, 1), lambda z: torch.max(z, torch.tensor([0.0])))
    with torch.no_grad():
        nn.init.constant_(net.body[3].bias, 1.0)  # type: ignore[index, union-attr]
    return Task(net, functional.mse_loss), split(x, y[:, None].exp().clamp(max=3))


@healthy
def hinge_by_maximum() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        right = z.gather(1, y[:, None])
        margins = torch.maximum(1 + z - right, torch.zeros(()))
        return margins.masked_fill(functional.one_hot(y, 10).bool(), 0).sum(1).mean()

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@healthy
def clipped_surrogate() -> Arguments:
    """The smaller of two gains, as in proximal policy optimization."""

    class Policy(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            log_p = self.net(x).log_softmax(1).gather(1, y[:, None])
            ratio = (log_p - log_p.detach()).exp()
            gain = torch.where(y[:, None] > 4, 1.0, -1.0)
            return -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()

    return Policy(mlp(64, 64, 10)), digit_loaders()


@healthy
def huber_written_out() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        error = (z - y).abs()
        small = torch.min(error, torch.tensor(1.0))
        return (0.5 * small**2 + (error - small)).mean()

    return Task(mlp(10, 32, 1), loss), diabetes_loaders()


@healthy
def flooding() -> Arguments:
    """Ishida et al., 2020: a loss that isn't below a number."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        found = functional.cross_entropy(z, y)
        return torch.max(found - 0.02, torch.zeros_like(found)) + 0.02

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@healthy
def wide_clamp_before_cross_entropy() -> Arguments:
    return Task(Within(mlp(64, 64, 10), lambda z: z.clamp(-15, 15))), digit_loaders()
