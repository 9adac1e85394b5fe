"""Healthy programs whose first weights or activations are unusual, on purpose."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    healthy,
    mlp,
    split,
)


def _initialised(net: nn.Module, gain: float) -> nn.Module:
    for part in net.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=gain / part.in_features**0.5)
            nn.init.zeros_(part.bias)
    return net


@healthy
def thirty_layers_by_he() -> Arguments:
    return Task(_initialised(mlp(64, *[64] * 29, 10), 2**0.5)), digit_loaders()


@healthy
def thirty_layers_of_tanh_by_xavier() -> Arguments:
    net = mlp(64, *[64] * 29, 10, activation=nn.Tanh)
    return Task(_initialised(net, 1.0)), digit_loaders()


class Branch(nn.Module):
    """A residual branch without a norm.

    Args:
        scale: First factor of the branch, as in LayerScale.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.branch = mlp(32, 32, 32)
        self.scale = nn.Parameter(torch.full((32,), scale))

    def forward(self, x: Tensor) -> Any:
        return x + self.scale * self.branch(x)


@healthy
def thirty_residual_branches_without_norms() -> Arguments:
    net = nn.Sequential(mlp(64, 32), *[Branch(1.0) for _ in range(30)], nn.Linear(32, 10))
    return Task(net), digit_loaders()


@healthy
def branches_scaled_by_a_millionth() -> Arguments:
    net = nn.Sequential(mlp(64, 32), *[Branch(1e-6) for _ in range(4)], nn.Linear(32, 10))
    return Task(net), digit_loaders()


@healthy
def classifier_that_begins_at_zero() -> Arguments:
    net = mlp(64, 32, 32, 10)
    nn.init.zeros_(net.get_submodule("5").weight)  # type: ignore[arg-type]
    return Task(net), digit_loaders()


@healthy
def last_layer_that_begins_as_an_average() -> Arguments:
    """As DLinear does: each output is the mean of the window at first."""
    time = torch.arange(600) / 10
    series = (torch.sin(time) + 0.3 * torch.cos(3 * time)).unfold(0, 24, 1)
    layer = nn.Linear(16, 8)
    nn.init.constant_(layer.weight, 1 / 16)
    data = split(series[:, :16].contiguous(), series[:, 16:].contiguous())
    return Task(layer, functional.mse_loss), data


@healthy
def bias_that_begins_at_the_mean_of_the_targets() -> Arguments:
    net = mlp(10, 32, 32, 32, 1)
    nn.init.constant_(net.get_submodule("7").bias, 150.0)  # type: ignore[arg-type]
    loaders = diabetes_loaders()
    return Task(net, lambda y, target: functional.mse_loss((y - 150.0), target)), loaders


@healthy
def coupling_layers_that_begin_at_zero() -> Arguments:
    class Flow(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.couplings = nn.ModuleList([mlp(5, 32, 10) for _ in range(3)])
            for coupling in self.couplings:
                for p in coupling.get_submodule("3").parameters():
                    nn.init.zeros_(p)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            a, b = batch[0].chunk(2, dim=1)
            volume = torch.zeros(len(a))
            for coupling in self.couplings:
                scale, shift = coupling(a).chunk(2, dim=1)
                scale = torch.tanh(scale)
                a, b = b * scale.exp() + shift, a
                volume = volume + scale.sum(dim=1)
            z = torch.cat([a, b], dim=1)
            return (0.5 * z.square().sum(dim=1) - volume).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    return Flow(), diabetes_loaders()[0]


@healthy
def depthwise_averages_and_masks_of_infinity() -> Arguments:
    class Smoothed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift = nn.Conv2d(1, 8, 3, padding=1)
            self.smooth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            nn.init.constant_(self.smooth.weight, 1 / 9)
            self.qkv, self.head = nn.Linear(64, 96), nn.Linear(256, 10)
            mask = torch.full((8, 8), float("-inf")).triu(1)
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Any:
            x = self.smooth(functional.relu(self.lift(x))).transpose(1, 2).flatten(2)
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            h = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)  # type: ignore[arg-type]
            return self.head(h.flatten(1))

    return Task(Smoothed()), digit_loaders()


@healthy
def gates_that_begin_open() -> Arguments:
    class Highway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.constant_(self.gate.bias, -4.0)

        def forward(self, x: Tensor) -> Any:
            gate = torch.sigmoid(self.gate(x))
            return gate * functional.relu(self.value(x)) + (1 - gate) * x

    net = nn.Sequential(mlp(64, 32), *[Highway() for _ in range(6)], nn.Linear(32, 10))
    return Task(net), digit_loaders()


@healthy
def hinge_whose_margins_are_all_kept() -> Arguments:
    def loss(y: Tensor, target: Tensor) -> Tensor:
        far = functional.relu(y.abs() - 100.0).mean()  # 0 unless outputs are extreme
        return functional.cross_entropy(y, target) + far

    return Task(mlp(64, 32, 10), loss), digit_loaders()
