"""Batch normalisation in torch's own functions, and what it asks of its arguments."""

import torch
from torch import Tensor

from lightning_kernels._core.activation import aten_activate
from lightning_kernels._core.parameters import check_parameter


@torch.no_grad()
def update_running(
    running_mean: Tensor, running_var: Tensor, statistics: Tensor, momentum: float
) -> None:
    """Update the running statistics as the kernel does, in operators that a compiler can follow.

    Args:
        running_mean: Of each channel.
        running_var: Likewise, unbiased.
        statistics: Mean, biased variance and count of each channel.
        momentum: Share of the new ones; where the count is 0 they have none.
    """
    mean, variance, count = statistics.unbind()
    unbiased = variance * (count / (count - 1).clamp(min=1))
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(torch.where(count > 0, momentum * new + (1 - momentum) * running, running))


def aten_batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: float, eps: float, activation: str | None,
    parameter: float, residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compose the same of torch's functions."""
    if running_mean is not None:  # ATen wants the four in one type
        weight, bias = (None if t is None else t.to(running_mean.dtype) for t in (weight, bias))
    if training and x.numel() == 0:  # nothing to learn from
        running_mean = running_var = None
    y = torch.nn.functional.batch_norm(
        x, running_mean, running_var, weight, bias, training, momentum, eps
    )
    return aten_activate(y if residual is None else y + residual, activation, parameter)


def check(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, training: bool, momentum: float, eps: float,
    synchronised: bool,
) -> None:  # fmt: skip
    """Raise what torch raises, saying what was got and what is expected."""
    if not x.is_floating_point():
        raise NotImplementedError(f"batch_norm expects a floating-point x, but got {x.dtype}")
    if x.dim() < 2:
        raise RuntimeError(f"batch_norm expects x of shape (N, C, *), but got {list(x.shape)}")
    if momentum is None:
        raise TypeError("batch_norm expects a float as momentum, but got None")
    if eps < 0.0 or (training and eps == 0.0):
        raise ValueError(f"batch_norm expects a positive eps, but got {eps}")
    if training and not synchronised and x.numel() == x.shape[1] > 0:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )
    if running_mean is None or running_var is None:
        if not training:
            raise RuntimeError("batch_norm expects running_mean and running_var in evaluation")
        if running_mean is not running_var:
            raise ValueError("batch_norm expects both running_mean and running_var or neither")
    for name, parameter in (
        ("running_mean", running_mean), ("running_var", running_var),
        ("weight", weight), ("bias", bias),
    ):  # fmt: skip
        check_parameter("batch_norm", name, parameter, x.shape[1:2], "the channels of x", x)
        if parameter is not None and parameter.requires_grad and name.startswith("running"):
            raise RuntimeError(f"batch_norm has no gradient for {name}, but it requires one")
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (
        x.shape, x.dtype, x.device,
    ):  # fmt: skip
        raise RuntimeError(
            f"batch_norm expects residual like x, {list(x.shape)} of {x.dtype} on {x.device}, but"
            f" got {list(residual.shape)} of {residual.dtype} on {residual.device}"
        )
