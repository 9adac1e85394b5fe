"""Values of activations and their derivatives, against torch's in float64.

The activations with kinks are compared at kinks, infinity and nan; gelu and silu for 16 bits at all
numbers of the type.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import batch_norm, dropout_activation, route
from lightning_kernels._core.activation import activate, activation_gradient
from lightning_kernels._core.launch import cdiv, launch
from lightning_kernels._core.triton import tl, triton

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


BLOCK_SIZE = 4096
TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# The error of a formula by that of rounding to the type.
SHARES = {torch.float16: 1 / 32, torch.bfloat16: 1 / 256}


@triton.jit  # type: ignore[untyped-decorator]
def _for_16_bits_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, slope_ptr, size, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Store the activation and its derivative before they are rounded."""
    index = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    x = tl.load(x_ptr + index, mask=index < size, other=0.0)
    y = activate(x, 0.0, ACTIVATION, DTYPE)
    slope = activation_gradient(tl.full((BLOCK_SIZE,), 1.0, tl.float32), x, 0.0, ACTIVATION, DTYPE)
    tl.store(y_ptr + index, y, mask=index < size)
    tl.store(slope_ptr + index, slope, mask=index < size)


def all_numbers(dtype: torch.dtype) -> Tensor:
    """Return all numbers of a type of 16 bits, in that type, without infinity and nan."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return numbers[numbers.isfinite()]


def half_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest error of rounding numbers of the size of ``x`` to ``dtype``."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(x.abs().clamp(min=info.smallest_normal))
    return torch.ldexp(torch.full_like(x, info.eps / 4), exponent)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_formulas_for_16_bits_at_all_numbers(
    activation: str, dtype: torch.dtype, device: str
) -> None:
    numbers = all_numbers(dtype)
    x = torch.cat([numbers, torch.tensor([-INF, INF, NAN], dtype=dtype)]).float().to(device)
    y, slope = torch.empty_like(x), torch.empty_like(x)
    launch(
        _for_16_bits_kernel, (cdiv(len(x), BLOCK_SIZE),), x.device, x, y, slope, len(x),
        ACTIVATION=activation, DTYPE=TYPES[dtype], BLOCK_SIZE=BLOCK_SIZE,
    )  # fmt: skip
    exact, exact_slope = derivative(getattr(F, activation), x.double())
    torch.testing.assert_close(y[-3:].double(), exact[-3:], equal_nan=True)
    y, exact, slope, exact_slope = (t[:-3].double() for t in (y, exact, slope, exact_slope))
    assert not (y.isnan() | slope.isnan()).any()
    assert ((y - exact).abs() <= SHARES[dtype] * half_unit(exact, dtype) + 1e-11).all()
    torch.testing.assert_close(slope, exact_slope, rtol=0, atol=1e-5)
