"""The activations with kinks and their derivatives, at kinks, infinity and nan, as in torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import batch_norm, dropout_activation, route

INF, NAN = float("inf"), float("nan")
EPS = 1e-30  # lost beside a variance of 1; torch 2.11 refuses 0
VALUES = [-INF, -3.5, -3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 4.0, 6.0, 7.0, INF, NAN]


def by_dropout(x: Tensor, activation: str) -> Tensor:
    return dropout_activation(x, activation, training=False)


def by_batch_norm(x: Tensor, activation: str) -> Tensor:
    mean, variance = x.new_zeros(1), x.new_ones(1)  # the norm changes nothing
    return batch_norm(x.reshape(-1, 1), mean, variance, eps=EPS, activation=activation).flatten()


def by_batch_norm_of_sum(x: Tensor, activation: str) -> Tensor:
    mean, variance = x.new_zeros(1), x.new_ones(1)
    zeros = x.new_zeros(len(x), 1)
    y = batch_norm(zeros, mean, variance, eps=EPS, activation=activation, residual=x.reshape(-1, 1))
    return y.flatten()


def derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


@pytest.mark.parametrize("call", [by_dropout, by_batch_norm, by_batch_norm_of_sum])
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "hardswish"])
def test_values_and_derivatives(
    activation: str, call: Callable[[Tensor, str], Tensor], device: str
) -> None:
    x = torch.tensor(VALUES, device=device)
    # Torch's vectorized loops on the CPU have other derivatives at nan than its scalar loops.
    single = [derivative(getattr(F, activation), value) for value in x.double().split(1)]
    expected = [torch.cat(tensors).float() for tensors in zip(*single, strict=True)]
    y, slope = derivative(lambda x: call(x, activation), x)
    torch.testing.assert_close(y, expected[0], rtol=1e-6, atol=1e-7, equal_nan=True)
    last = -1 if route(x) == "aten" else None
    torch.testing.assert_close(
        slope[:last], expected[1][:last], rtol=1e-6, atol=1e-7, equal_nan=True
    )
