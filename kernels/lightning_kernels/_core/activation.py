"""Activation functions: in kernels, for a tile in registers, and composed of torch's functions.

In kernels the computation is float32. If the result will be rounded to 16 bits, gelu and silu are
computed by formulas of fewer instructions. For all numbers of the type their error is at most 1/32
of the error of rounding to float16, or 1/256 of that to bfloat16, plus 1e-11: gelu below -5.5,
which is between -2e-7 and 0, has that absolute error. The error of their derivatives is at most
1e-5. Tests compare them with float64 for all numbers of both types.
"""

from typing import Literal

import torch
from torch import Tensor

from lightning_kernels._core.parameters import number_of
from lightning_kernels._core.triton import tl, triton

Activation = Literal[
    "relu", "relu6", "leaky_relu", "elu", "selu", "silu", "hardswish", "gelu"
]  # fmt: skip
"""Names of the activations that the kernels compute; ``"gelu"`` is exact, not the approximation."""

# The default parameter of each activation, None for an activation without parameter.
DEFAULT_PARAMETERS: dict[str, float | None] = {
    "relu": None,
    "relu6": None,
    "leaky_relu": 0.01,  # negative_slope
    "elu": 1.0,  # alpha
    "selu": None,
    "silu": None,
    "hardswish": None,
    "gelu": None,
}
PIECEWISE_LINEAR = frozenset(
    {"relu", "relu6", "leaky_relu"}
)  # one bit per element gives the derivative

_SELU_SCALE = tl.constexpr(1.0507009873554805)
_SELU_ALPHA = tl.constexpr(1.6732632423543772)
_LOG2_E = tl.constexpr(1.4426950408889634)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY_AT_ZERO = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi), the standard normal density


@triton.jit
def _expm1(z):
    """Return exp(z) - 1. For small z the subtraction would cancel, so a series computes it."""
    series = 1 / 24 + z * (1 / 120 + z * (1 / 720))
    series = z + z * z * (1 / 2 + z * (1 / 6 + z * series))
    return tl.where(tl.abs(z) < 0.25, series, tl.exp(z) - 1)


@triton.jit
def _sigmoid(z, dtype: tl.constexpr):
    """Return ``1 / (1 + exp(-z))``, with an error of about 2**-22 of it for 16 bits.

    For 16 bits the square of a reciprocal root takes the place of the division, which would need
    instructions for divisors that are denormal.
    """
    if dtype.primitive_bitwidth == 16:
        root = tl.rsqrt(1 + tl.exp2(z * -_LOG2_E))
        sigmoid = root * root
    else:
        sigmoid = 1 / (1 + tl.exp(-z))
    return sigmoid


@triton.jit
def _normal_distribution(z, dtype: tl.constexpr):
    """Return the standard normal distribution function at ``z``.

    For 16 bits it is ``2 ** q(abs(z))`` for negative ``z``, and 1 minus that for positive ``z``.
    The polynomial ``q`` approximates the logarithm to base 2 of the function's left tail on
    [-5.6, 0], so that the error is relative to the tail: at most 2**-17.9 of it down to -4.2, and
    2**-17.1 down to -5.5. Below, ``q`` falls on, so that the result goes to 0.
    """
    if dtype.primitive_bitwidth == 16:
        distance = tl.abs(z)
        q = 6.0651062e-05 + distance * -1.7783051e-06
        q = -0.00092439936 + distance * q
        q = 0.0084886691 + distance * q
        q = -0.053929903 + distance * q
        q = -0.45848623 + distance * q
        q = -1.1512454 + distance * q
        tail = tl.exp2(-0.99999553 + distance * q)
        probability = tl.where(z > 0, 1 - tail, tail)
    else:
        probability = 0.5 * (1 + tl.erf(z * _SQRT_HALF))
    return probability


@triton.jit
def activate(z, parameter, ACTIVATION: tl.constexpr, dtype: tl.constexpr):
    """Return the activation of ``z`` (float32) in float32. nan stays nan.

    ``dtype`` is the type that the result will be rounded to.
    """
    if ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "relu6":
        z = tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, z * parameter)
    elif ACTIVATION == "elu":
        z = tl.where(z > 0, z, parameter * _expm1(z))
    elif ACTIVATION == "selu":
        z = _SELU_SCALE * tl.where(z > 0, z, _SELU_ALPHA * _expm1(z))
    elif ACTIVATION == "silu":
        z = z * _sigmoid(z, dtype) if dtype.primitive_bitwidth == 16 else z / (1 + tl.exp(-z))
    elif ACTIVATION == "hardswish":  # the product with 0 makes -inf nan, as in torch
        z *= tl.where(z <= -3, 0.0, tl.where(z >= 3, 1.0, z * (1 / 6) + 0.5))
    elif ACTIVATION == "gelu":
        z *= _normal_distribution(z, dtype)
    return z


@triton.jit
def passes(z, ACTIVATION: tl.constexpr):
    """Return a mask: True where a piecewise linear activation has slope 1. nan counts as in torch.

    For nan the mask is True with relu and relu6, and False with leaky_relu.
    """
    if ACTIVATION == "relu":
        passed = (z <= 0) == 0
    elif ACTIVATION == "relu6":
        passed = ((z <= 0) | (z >= 6)) == 0
    else:
        passed = z > 0
    return passed


@triton.jit
def gradient_where_passed(grad, passed, parameter, ACTIVATION: tl.constexpr):
    """Return the gradient of a piecewise linear activation's input.

    ``grad`` is the gradient of the output. ``passed`` is the mask that :func:`passes` returns.
    """
    if ACTIVATION == "relu" or ACTIVATION == "relu6":
        grad = tl.where(passed, grad, 0.0)
    else:
        grad = tl.where(passed, grad, grad * parameter)
    return grad


@triton.jit
def activation_gradient(grad, z, parameter, ACTIVATION: tl.constexpr, dtype: tl.constexpr):
    """Return ``grad`` times the derivative of the activation at ``z`` (float32).

    ``dtype`` is the type of the gradients in memory.
    """
    if ACTIVATION == "relu" or ACTIVATION == "relu6" or ACTIVATION == "leaky_relu":
        grad = gradient_where_passed(grad, passes(z, ACTIVATION), parameter, ACTIVATION)
    elif ACTIVATION == "elu":
        grad = tl.where(z > 0, grad, grad * parameter * tl.exp(z))
    elif ACTIVATION == "selu":
        grad = _SELU_SCALE * tl.where(z > 0, grad, grad * _SELU_ALPHA * tl.exp(z))
    elif ACTIVATION == "silu":
        sigmoid = _sigmoid(z, dtype)
        grad *= sigmoid * (1 + z * (1 - sigmoid))
    elif ACTIVATION == "hardswish":
        grad = tl.where(z <= -3, 0.0, tl.where(z < 3, grad * (z * (1 / 3) + 0.5), grad))
    elif ACTIVATION == "gelu":
        if dtype.primitive_bitwidth == 16:
            density = _DENSITY_AT_ZERO * tl.exp2(z * z * (-0.5 * _LOG2_E))
        else:
            density = _DENSITY_AT_ZERO * tl.exp(-0.5 * z * z)
        grad *= _normal_distribution(z, dtype) + z * density
    return grad


def resolve_parameter(activation: str | None, parameter: float | None) -> float:
    """Return the activation's parameter as a float: the given one, the default, or 0 without one.

    Raises:
        ValueError: If the activation is unknown. If ``parameter`` is given for an activation
            without parameter.
    """
    if activation is not None and (
        not isinstance(activation, str) or activation not in DEFAULT_PARAMETERS
    ):
        known = ", ".join(DEFAULT_PARAMETERS)
        raise ValueError(f"activation must be None or one of {known}, but got {activation!r}")
    default = None if activation is None else DEFAULT_PARAMETERS[activation]
    if parameter is None:
        return 0.0 if default is None else default
    if default is None:
        raise ValueError(
            f"activation_parameter is the slope of leaky_relu or the alpha of elu, but got"
            f" {parameter} with activation {activation!r}"
        )
    return number_of("the activation", "activation_parameter", parameter)


def aten_activate(z: Tensor, activation: str | None, parameter: float) -> Tensor:
    """Return the activation of ``z`` by torch's functions. relu writes the result over ``z``."""
    if activation is None:
        return z
    if activation == "relu":
        return z.relu_()  # in place: the derivative needs the result alone
    if activation == "leaky_relu":
        return torch.nn.functional.leaky_relu(z, parameter)
    if activation == "elu":
        return torch.nn.functional.elu(z, parameter)
    y: Tensor = getattr(torch.nn.functional, activation)(z)
    return y
