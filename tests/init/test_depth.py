"""The scale of activations and gradients after 30 layers of width 256, in float64."""

import math
from collections.abc import Callable
from statistics import geometric_mean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_practices.init import initialize

pytestmark = pytest.mark.plain

DEPTH, WIDTH, BATCH, SEEDS = 30, 256, 128, range(5)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "rrelu": nn.RReLU,
    "elu": nn.ELU,
    "elu of 0.5": lambda: nn.ELU(0.5),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}
# Their slopes are below 1/4 or 1 everywhere, so that no variance keeps gradients.
VANISHING = ("sigmoid", "softplus")


def network(make: Callable[[], nn.Module], depth: int = DEPTH) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), make())]
    return nn.Sequential(*layers).double().eval()


def moments(model: nn.Module, seed: int) -> tuple[float, float]:
    """Return the root mean squares of the output, and of the gradient at the input."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, BATCH, WIDTH, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y, x, noise)
    return rms(y), rms(gradient)


def rms(x: Tensor) -> float:
    return math.sqrt(x.detach().square().mean().item())


def ends(make: Callable[[], nn.Module], scheme: Any = "auto") -> list[tuple[float, float]]:
    model, found = network(make), []
    for seed in SEEDS:
        initialize(model, scheme, generator=torch.Generator().manual_seed(100 + seed))
        found.append(moments(model, seed))
    return found


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_auto_keeps_activations_and_gradients(name: str) -> None:
    forward, backward = zip(*ends(ACTIVATIONS[name]), strict=True)
    assert 0.2 < geometric_mean(forward) < 5
    assert name in VANISHING or 0.1 < geometric_mean(backward) < 10
    # Draws scatter around the unstable fixed points of these.
    factor = 20 if name.split()[0] in ("gelu", "silu", "mish", "hardswish") else 5
    assert all(1 / factor < value < factor for value in forward)


@pytest.mark.parametrize(
    ("name", "scheme", "low", "high"),
    [
        ("tanh", "xavier_normal", 0.10, 0.15),
        ("relu", "kaiming_normal", 0.4, 2.0),
        ("relu", "kaiming_uniform", 0.4, 2.0),
        ("relu", "xavier_normal", 1e-6, 1e-4),  # 2^-15
        ("gelu", "kaiming_normal", 0.0, 0.5),
        ("silu", "kaiming_normal", 0.0, 1e-3),
        ("selu", "lecun_normal", 0.8, 1.2),
        ("elu", "lecun_normal", 0.06, 0.12),
        ("linear", "orthogonal", 0.9, 1.1),
    ],
)
def test_what_the_named_schemes_leave(name: str, scheme: str, low: float, high: float) -> None:
    for forward, _ in ends(ACTIVATIONS[name], scheme):
        assert low < forward < high


def test_torchs_gain_for_selu_vanishes_where_ours_does_not() -> None:
    model = network(nn.SELU)
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="selu", generator=generator)
                nn.init.zeros_(layer.bias)
        assert 0.15 < moments(model, seed)[0] < 0.25
