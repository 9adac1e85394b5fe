"""Healthy regressions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes,
    diabetes_loaders,
    healthy,
    mlp,
    split,
)


@healthy
def mlp_on_diabetes() -> Arguments:
    return Task(mlp(10, 32, 32, 1), functional.mse_loss), diabetes_loaders()


@healthy
def flat_targets_and_a_squeezed_output() -> Arguments:
    x, y = diabetes()
    net = nn.Sequential(mlp(10, 32, 1), nn.Flatten(0))
    return Task(net, functional.huber_loss), split(x, y)


@healthy
def written_out_loss() -> Arguments:
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).pow(2).mean() + 0.1 * (target - prediction).abs().mean()

    return Task(mlp(10, 32, 1), loss), diabetes_loaders()


@healthy
def quantiles_by_broadcasting() -> Arguments:
    """Each target meets three quantiles: (N, 1) against (N, 3), on purpose."""
    levels = torch.tensor([0.1, 0.5, 0.9])

    def pinball(prediction: Tensor, target: Tensor) -> Tensor:
        error = target - prediction
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    return Task(mlp(10, 32, 3), pinball), diabetes_loaders()


@healthy
def gaussian_likelihood() -> Arguments:
    """Its loss is negative where the predicted variance is small."""

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        mean, variance = prediction.chunk(2, dim=1)
        return functional.gaussian_nll_loss(mean, target, functional.softplus(variance) + 1e-3)

    return Task(mlp(10, 32, 2), loss), diabetes_loaders()


@healthy
def counts_by_poisson() -> Arguments:
    x, y = diabetes()
    counts = torch.poisson((y * 0.5 + 1).exp(), generator=torch.Generator().manual_seed(0))

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return functional.poisson_nll_loss(prediction, target)

    return Task(mlp(10, 32, 1), loss), split(x, counts[:, None])


@healthy
def positive_targets_and_softplus() -> Arguments:
    x, y = diabetes()
    net = nn.Sequential(mlp(10, 32, 1), nn.Softplus())
    return Task(net, functional.mse_loss), split(x, y[:, None].exp())


@healthy
def targets_in_zero_to_one_and_a_sigmoid() -> Arguments:
    x, y = diabetes()
    net = nn.Sequential(mlp(10, 32, 1), nn.Sigmoid())
    return Task(net, functional.mse_loss), split(x, torch.sigmoid(2 * y[:, None]))


@healthy
def the_norm_is_the_first_layer() -> Arguments:
    """Raw features, whose spreads differ by far, go into a batch norm."""
    x, y = diabetes()
    scales = torch.logspace(-2, 3, 10)
    net = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    return Task(net, functional.mse_loss), split(x * scales + scales, y[:, None])


@healthy
def a_list_of_loaders_and_dict_batches() -> Arguments:
    class Pair(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            losses = [
                functional.mse_loss(self.net(x), y) for x, y in (batch["first"], batch["second"])
            ]
            return torch.stack(losses).sum()

    x, y = diabetes()
    parts = [TensorDataset(x[i::2], y[i::2, None]) for i in range(2)]
    loaders = {
        name: DataLoader(part, 32, shuffle=True)
        for name, part in zip(("first", "second"), parts, strict=True)
    }
    return Pair(mlp(10, 32, 1)), (loaders, DataLoader(parts[0], 32))
