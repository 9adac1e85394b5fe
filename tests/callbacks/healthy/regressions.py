"""Regressions, survival, equations and ratings that are fitted well."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.programs import Task, diabetes, digits, mlp, split
from tests.callbacks.faulty_fits import Fit
from tests.callbacks.healthy.declared import Metric, Own, fits_well, squared_error


def adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@fits_well(below=0.55)
def table_of_diabetes() -> tuple[Fit, Metric]:
    x, y = diabetes()
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    module = Task(net, functional.mse_loss, lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.1))
    return Fit(module, *split(x, y[:, None]), steps=200), lambda: squared_error(net, x, y[:, None])


def waves() -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(1000, 1, generator=generator()) - 1
    return x, (4 * x).sin() + 0.3 * torch.randn(1000, 1, generator=generator())


@fits_well(below=0.15, full=True)
def quantiles() -> tuple[Fit, Metric]:
    x, y = waves()
    net, levels = mlp(1, 32, 32, 3), torch.tensor([0.1, 0.5, 0.9])

    def pinball(z: Tensor, target: Tensor) -> Tensor:
        error = target - z
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    def metric() -> Any:
        return ((y < net(x)).float().mean(0) - levels).abs().max().item()

    return Fit(Task(net, pinball, adam(3e-3)), *split(x, y), steps=400), metric


@fits_well(below=0.2, full=True)
def gaussian_likelihood() -> tuple[Fit, Metric]:
    x, y = waves()
    net = mlp(1, 32, 32, 2, activation=nn.Tanh)

    def loss(z: Tensor, target: Tensor) -> Tensor:
        return functional.gaussian_nll_loss(z[:, :1], target, z[:, 1:].exp())

    def metric() -> float:
        return squared_error(lambda_module(lambda v: net(v)[:, :1]), x, y)

    return Fit(Task(net, loss, adam(1e-2)), *split(x, y), steps=300), metric


def lambda_module(function: Any) -> nn.Module:
    """Return a module that calls a function."""

    class Called(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    return Called()


@fits_well(above=0.75)
def survival_by_partial_likelihood() -> tuple[Fit, Metric]:
    x = torch.randn(600, 6, generator=generator())
    risk = x[:, 0] - 0.8 * x[:, 1] + 0.5 * x[:, 2] * x[:, 3]
    time = -torch.rand(600, generator=generator()).log() * (-1.5 * risk).exp()
    seen = (torch.rand(600, generator=generator()) < 0.8).float()
    net = nn.Sequential(mlp(6, 32, 1), nn.Flatten(0))

    class Cox(Own):
        def loss_of(self, batch: Any) -> Any:
            values, times, events = batch
            score = self.net(values)[times.argsort(descending=True)]
            known = events[times.argsort(descending=True)]
            return -((score - score.logcumsumexp(0)) * known).sum() / known.sum()

    def concordance() -> Any:
        score = net(x)
        first = (time[:, None] < time[None]) & (seen[:, None] > 0)
        return (score[:, None] > score[None])[first].float().mean().item()

    return Fit(Cox(net, optimizer=adam(5e-3)), *split(x, time, seen), steps=200), concordance


@fits_well(below=0.02)
def equation_by_gradients_of_gradients() -> tuple[Fit, Metric]:
    """The solution of u'' = -u with u(0) = 0 and u'(0) = 1: points are drawn in each step."""
    net = mlp(1, 32, 32, 1, activation=nn.Tanh)

    def slope(y: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    class Physics(Own):
        def loss_of(self, batch: Any) -> Any:
            x = (3 * torch.rand(64, 1)).requires_grad_()
            u = self.net(x)
            residual = slope(slope(u, x), x) + u
            start = torch.zeros(1, 1, requires_grad=True)
            first = self.net(start)
            ends = first.square() + (slope(first, start) - 1).square()
            return residual.square().mean() + ends.mean()

    def metric() -> Any:
        x = torch.linspace(0, 3, 50)[:, None]
        return (net(x) - x.sin()).square().mean().item()

    loader: Any = DataLoader(TensorDataset(torch.zeros(640, 1)), 64)
    return Fit(Physics(net, optimizer=adam(5e-3)), loader, steps=500), metric


class Flow(nn.Module):
    """A field that moves points, by Runge-Kutta steps of order four."""

    def __init__(self) -> None:
        super().__init__()
        self.field = mlp(2, 32, 2, activation=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        path, h = [], 0.2
        for _ in range(10):
            a = self.field(x)
            b = self.field(x + h / 2 * a)
            c = self.field(x + h / 2 * b)
            d = self.field(x + h * c)
            x = x + h / 6 * (a + 2 * b + 2 * c + d)
            path.append(x)
        return torch.stack(path, 1)


@fits_well(below=0.05, full=True)
def ordinary_differential_equation() -> tuple[Fit, Metric]:
    x = torch.randn(512, 2, generator=generator())
    turn = torch.linalg.matrix_exp(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]) * 0.2)
    path, now = [], x
    for _ in range(10):
        now = now @ turn.T
        path.append(now)
    y, net = torch.stack(path, 1), Flow()
    module = Task(net, functional.mse_loss, adam(1e-2))
    return Fit(module, *split(x, y), steps=200), lambda: squared_error(net, x, y)


@fits_well(above=0.9)
def two_tasks_with_learned_weights() -> tuple[Fit, Metric]:
    """The class, and the sum of the pixels in its own unit: each loss has a learned scale."""
    x, y = digits()
    total = x.sum((1, 2, 3))[:, None]

    class Both(Own):
        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 11), optimizer=adam(3e-3))
            self.scales = nn.Parameter(torch.zeros(2))

        def loss_of(self, batch: Any) -> Tensor:
            out = self.net(batch[0])
            first = functional.cross_entropy(out[:, :10], batch[1])
            second = functional.mse_loss(out[:, 10:], batch[2])
            losses = torch.stack([first, second])
            return ((-self.scales).exp() * losses + self.scales).sum()

    module = Both()

    def metric() -> Any:
        return (module.net(x)[:, :10].argmax(1) == y).float().mean().item()

    return Fit(module, *split(x, y, total), steps=250), metric


@fits_well(below=0.3)
def factorised_ratings() -> tuple[Fit, Metric]:
    people, things = (torch.randn(60, 3, generator=generator()) for _ in range(2))
    things = things.flip(0)
    u, v = torch.cartesian_prod(torch.arange(60), torch.arange(60)).unbind(1)
    ratings = (people[u] * things[v]).sum(1)
    net = nn.ModuleDict({"u": nn.Embedding(60, 4), "v": nn.Embedding(60, 4)})
    for table in net.values():
        nn.init.normal_(table.weight, std=0.3)  # type: ignore[arg-type]

    def predicted(a: Tensor, b: Tensor) -> Any:
        return (net["u"](a) * net["v"](b)).sum(1)

    class Ratings(Own):
        def loss_of(self, batch: Any) -> Tensor:
            return functional.mse_loss(predicted(batch[0], batch[1]), batch[2])

    def metric() -> Any:
        return (predicted(u, v) - ratings).square().mean().item() / ratings.var().item()

    return Fit(Ratings(net, optimizer=adam(2e-2)), *split(u, v, ratings), steps=250), metric


@fits_well(below=0.2, full=True)
def counts_by_poisson() -> tuple[Fit, Metric]:
    x = torch.randn(800, 4, generator=generator())
    rate = (1 + 0.7 * x[:, :1] - 0.5 * x[:, 1:2]).exp()
    y, net = torch.poisson(rate, generator=generator()), mlp(4, 32, 1)
    module = Task(net, nn.PoissonNLLLoss(), adam(3e-3))

    def metric() -> Any:
        return (net(x) - rate.log()).square().mean().item()

    return Fit(module, *split(x, y), steps=300), metric


@fits_well(below=0.1, full=True)
def huge_targets_with_a_scaled_loss() -> tuple[Fit, Metric]:
    """The loss is summed over outputs and in the targets' own unit: thousands at first."""
    x, y = waves()
    y = math.sqrt(1000) * torch.cat([(4 * x).sin(), (3 * x).cos()], 1)
    net = mlp(1, 64, 64, 2)
    module = Task(net, lambda z, t: (z - t).square().sum(1).mean(), adam(1e-2))
    return Fit(module, *split(x, y), steps=300), lambda: squared_error(net, x, y) / 500
