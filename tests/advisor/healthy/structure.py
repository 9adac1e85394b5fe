"""Healthy models, close to those whose layers hinder each other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    healthy,
    mlp,
)


class Lora(nn.Module):
    """A frozen layer with two small matrices beside it."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) + self.up(functional.dropout(self.down(x), 0.1, self.training))


@healthy
def lora_within_a_perceptron() -> Arguments:
    net = mlp(64, 64, 64, 10)
    net[1], net[3] = Lora(net[1]), Lora(net[3])  # type: ignore[arg-type]
    return Task(net), digit_loaders()


class Reconstruction(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        return functional.mse_loss(self.net(x), x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@healthy
def shallow_linear_autoencoder() -> Arguments:
    return Reconstruction(nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64))), digit_loaders()


@healthy
def deep_linear_autoencoder() -> Arguments:
    net = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8), nn.Linear(8, 32), nn.Linear(32, 64))
    return Reconstruction(net), digit_loaders()


@healthy
def autoencoder_with_a_linear_code() -> Arguments:
    net = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(),
        nn.Linear(32, 64),
    )  # fmt: skip
    return Reconstruction(net), digit_loaders()


@healthy
def linear_regression() -> Arguments:
    return Task(nn.Linear(10, 1), functional.mse_loss), diabetes_loaders()


@healthy
def factorised_layer() -> Arguments:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16, bias=False), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    return Task(net), digit_loaders()


@healthy
def linear_probe_on_frozen_features() -> Arguments:
    backbone = mlp(64, 64, 64).requires_grad_(False)
    return Task(nn.Sequential(backbone, nn.Linear(64, 10))), digit_loaders()


class SelfAttention(nn.Module):
    """Attention that is written out, with a linear map of the input before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))
        self.norm = nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.feed = nn.Sequential(
            nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32),
            nn.Dropout(0.1),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x.squeeze(1)) + self.place
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        weights = functional.dropout(
            (q @ k.transpose(1, 2) / 32**0.5).softmax(dim=-1), 0.1, self.training
        )
        x = x + self.out(weights @ v)
        x = x + self.feed(x)
        return self.head(x.mean(dim=1))


@healthy
def attention_written_out() -> Arguments:
    return Task(SelfAttention()), digit_loaders()


@healthy
def transformer_of_torch() -> Arguments:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.encoder(self.embed(x.squeeze(1))).mean(dim=1))

    return Task(Encoder()), digit_loaders()


class Residual(nn.Module):
    """As in EDSR: a convolution whose result goes to a block and around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return x + self.last(functional.relu(self.first(x)))


@healthy
def residual_blocks_without_norms() -> Arguments:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), Residual(16), Residual(16), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return Task(net), digit_loaders()


@healthy
def separable_convolutions() -> Arguments:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return Task(net, optimizer=lambda p: torch.optim.Adam(p, 1e-2)), digit_loaders()


class Gated(nn.Module):
    """A mixture of experts: softmax weighs their results."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(mlp(64, 32, 32) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        x = x.flatten(1)
        weights = self.gate(x).softmax(dim=1)
        found = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head(functional.relu((weights[:, :, None] * found).sum(dim=1)))


@healthy
def mixture_of_experts() -> Arguments:
    return Task(Gated()), digit_loaders()


@healthy
def selu_by_the_book() -> Arguments:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.SELU(), nn.AlphaDropout(0.05), nn.Linear(64, 64),
        nn.SELU(), nn.Linear(64, 10),
    )  # fmt: skip
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
    return Task(net), digit_loaders()


@healthy
def convolution_activation_norm() -> Arguments:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.BatchNorm2d(32), nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 10),
    )  # fmt: skip
    return Task(net), digit_loaders()


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * (x > 0)


class CustomActivation(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Custom.apply(x)


@healthy
def activation_of_an_own_autograd_function() -> Arguments:
    return Task(mlp(64, 64, 64, 10, activation=CustomActivation)), digit_loaders()


@healthy
def activation_of_torch_script() -> Arguments:
    net = mlp(64, 64, 10)
    net[2] = torch.jit.script(nn.ReLU())
    return Task(net), digit_loaders()


class Quadratic(nn.Module):
    """Features are squared: no activation, and not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x.flatten(1))
        return self.last(h * h / 8)


@healthy
def quadratic_network() -> Arguments:
    return Task(Quadratic()), digit_loaders()
