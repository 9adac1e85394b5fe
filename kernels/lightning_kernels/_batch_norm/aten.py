"""Batch norm composed of torch's functions, and the checks of its arguments."""

import math

import torch
from torch import Tensor

from lightning_kernels._core.activation import aten_activate
from lightning_kernels._core.autocast import call_torch
from lightning_kernels._core.dispatch import norm_runs_triton
from lightning_kernels._core.parameters import (
    check_channels,
    check_eps,
    check_residual,
    check_tensor,
    number_of,
)


def aten_batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: float, eps: float, activation: str | None,
    parameter: float, residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compute :func:`lightning_kernels.batch_norm` by torch's functions."""
    if running_mean is not None:  # ATen expects parameters and running statistics in one dtype
        weight, bias = (None if t is None else t.to(running_mean.dtype) for t in (weight, bias))
    if training and x.numel() == 0:  # an empty batch has no statistics
        running_mean = running_var = None
    # Not torch.nn.functional.batch_norm, whose check of the shape callers have made already.
    y = call_torch(
        torch.batch_norm, x, weight, bias, running_mean, running_var, training, momentum, eps,
        torch.backends.cudnn.enabled,
    )  # fmt: skip
    if activation is None and residual is None:
        return y
    return aten_activate(y if residual is None else y + residual, activation, parameter)


def aten_common(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: float, eps: float,
) -> Tensor | None:  # fmt: skip
    """Return batch norm on the CPU for the arguments of most layers, ``None`` for others."""
    if not (
        is_common(x, running_mean, running_var, weight, bias, training, momentum, eps)
        and x.is_cpu
        and not norm_runs_triton(x)
    ):
        return None
    try:  # torch.nn.functional.batch_norm calls this function too, after slow checks in Python
        return torch.batch_norm(
            x, weight, bias, running_mean, running_var, training, momentum, eps,
            torch.backends.cudnn.enabled,
        )  # fmt: skip
    except RuntimeError:  # an argument does not fit, which the errors of check explain
        return None


def is_common(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: float, eps: float,
) -> bool:  # fmt: skip
    """Return whether these arguments need no :func:`check`, as those of most layers.

    Its few tests take less time than the calls of :func:`check`, which take as long as a small
    input. They leave out what ATen refuses on the CPU before it changes the running statistics:
    parameters of the wrong length or device.
    """
    if (
        type(x) is not Tensor
        or x.dim() < 2
        or (training and x.numel() <= x.shape[1])  # one value per channel, or an empty input
        or not (type(momentum) is float and momentum == momentum)  # nan is not
        or not (type(eps) is float and 0.0 < eps < math.inf)
    ):
        return False
    try:
        if weight is None or bias is None:
            if weight is not bias:
                return False
        elif not (weight.dtype is bias.dtype and weight.dim() == bias.dim() == 1):
            return False
        if running_mean is None or running_var is None:
            return training and running_mean is running_var
        return (
            running_mean.dtype is running_var.dtype
            and (weight is None or weight.dtype is running_mean.dtype)
            and running_mean.dim() == running_var.dim() == 1
            and not running_mean.requires_grad
            and not running_var.requires_grad
        )
    except AttributeError:  # one is not a tensor
        return False


def check(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, training: bool, momentum: float, eps: float,
    synchronised: bool,
) -> None:  # fmt: skip
    """Check the arguments of :func:`lightning_kernels.batch_norm`.

    The types of the errors are those of torch's batch norm.
    """
    check_tensor("batch_norm", x)
    # torch takes an empty input of one dimension, and parameters of any shape for an empty input
    is_empty = x.numel() == 0 and not synchronised
    if x.dim() < 2 and not is_empty:
        raise RuntimeError(
            f"batch_norm expects an input of shape (N, C, *), but got {list(x.shape)}"
        )
    number_of("batch_norm", "momentum", momentum)
    check_eps("batch_norm", eps, least=0)
    if training and eps == 0.0:
        raise ValueError("batch_norm expects a positive eps in training, but got 0.0")
    if training and not synchronised and x.shape[0] * math.prod(x.shape[2:]) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )
    if running_mean is None or running_var is None:
        if not training and not is_empty:
            raise RuntimeError("batch_norm expects running_mean and running_var in evaluation")
        if running_mean is not running_var:
            raise ValueError("batch_norm expects both running_mean and running_var or neither")
    running = {"running_mean": running_mean, "running_var": running_var}
    check_channels("batch_norm", x, is_empty, **running, weight=weight, bias=bias)
    for name, statistics in running.items():
        if statistics is not None and statistics.requires_grad:
            raise RuntimeError(f"batch_norm has no gradient for {name}, but it requires one")
    check_residual("batch_norm", x, residual, or_float32=False)
