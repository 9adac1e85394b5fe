"""Gradients by the inputs in a loss: penalties of critics, and distance fields."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.advisor.programs import Arguments, Task, digits, healthy, split


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 3, 2, 1),
            nn.Sequential(nn.LeakyReLU(0.2), nn.Flatten()), nn.Linear(128, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores


class Wasserstein(Task):
    """A generator of digits and a critic with a gradient penalty."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8))
            )
        )
        self.critic = Critic()
        self.automatic_optimization = False

    def gradient(self, x: Tensor) -> Tensor:
        scores = self.critic(x)
        found: Any = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True)
        gradient: Tensor = found[0]
        return gradient

    def penalty(self, gradient: Tensor) -> Tensor:
        return 10 * ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        ours: Any
        theirs: Any
        ours, theirs = self.optimizers()
        made = self.net(torch.randn(len(x), 16))
        share = torch.rand(len(x), 1, 1, 1)
        between = (share * x + (1 - share) * made.detach()).requires_grad_(True)
        loss = self.critic(made.detach()).mean() - self.critic(x).mean()
        loss = loss + self.penalty(self.gradient(between))
        theirs.zero_grad()
        self.manual_backward(loss)
        theirs.step()
        ours.zero_grad()
        self.manual_backward(-self.critic(made).mean())
        ours.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", -self.critic(batch[0]).mean())

    def configure_optimizers(self) -> Any:
        parts = (self.net, self.critic)
        return [torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.0, 0.9)) for part in parts]


def images() -> Any:
    return split(*digits(), batch_size=32)


@healthy
def penalty_of_each_sample() -> Arguments:
    return Wasserstein(), images()


@healthy
def penalty_written_out() -> Arguments:
    class Written(Wasserstein):
        def penalty(self, gradient: Tensor) -> Tensor:
            squares = gradient.pow(2).sum(dim=(1, 2, 3))
            return 10 * (torch.sqrt(squares + 1e-12) - 1).clamp(min=0).square().mean()

    return Written(), images()


@healthy
def penalty_of_zero_centre() -> Arguments:
    class Zero(Wasserstein):
        def penalty(self, gradient: Tensor) -> Tensor:
            return 5 * gradient.square().sum() / len(gradient)

    return Zero(), images()


@healthy
def distance_field_of_points() -> Arguments:
    """Each point of each cloud has a gradient of norm 1: an eikonal loss."""

    class Field(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            points = batch[0].requires_grad_(True)
            distances = self.net(points)
            gradient: Any = torch.autograd.grad(distances.sum(), points, create_graph=True)[0]
            wanted = points.detach().norm(dim=-1, keepdim=True) - 1
            eikonal = (gradient.norm(dim=-1) - 1).square().mean()
            return (distances - wanted).abs().mean() + 0.1 * eikonal

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            wanted = batch[0].norm(dim=-1, keepdim=True) - 1
            self.log("val_loss", (self.net(batch[0]) - wanted).abs().mean())

    net = nn.Sequential(
        nn.Linear(3, 64), nn.Softplus(beta=10), nn.Linear(64, 64), nn.Softplus(beta=10),
        nn.Linear(64, 1),
    )  # fmt: skip
    return Field(net), split(torch.randn(512, 20, 3))
