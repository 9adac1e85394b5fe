"""Means and variances of channels: merged from shares, and averaged over training steps."""

import torch
from torch import Tensor

from lightning_kernels._core.launch import cdiv, launch
from lightning_kernels._core.tiles import load_or
from lightning_kernels._core.triton import tl, triton

Running = tuple[Tensor, Tensor, float]  # mean, variance, momentum

_MERGE = {"SPLITS": 128, "CHANNELS": 16, "num_warps": 8}


@triton.jit
def _merge_statistics_kernel(
    partial_ptr,
    statistics_ptr,
    running_mean_ptr,
    running_var_ptr,
    splits,
    channels,
    split_stride,
    kind_stride,
    momentum,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Merge shares of programs or processes, in a fixed order; update the running statistics.

    The sums are float64, so that the difference loses no digit of the float32 shares. A share may
    be empty.
    """
    split = tl.arange(0, SPLITS)[:, None]
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    in_channels = channel < channels
    total = tl.zeros((SPLITS, CHANNELS), tl.float64)
    squares = tl.zeros((SPLITS, CHANNELS), tl.float64)
    counts = tl.zeros((SPLITS, CHANNELS), tl.float64)
    for first in range(0, splits, SPLITS):
        in_bounds = (first + split < splits) & in_channels
        in_ptr = partial_ptr + (first + split) * split_stride + channel
        mean = tl.load(in_ptr, mask=in_bounds, other=0.0).to(tl.float64)
        deviations = tl.load(in_ptr + kind_stride, mask=in_bounds, other=0.0)
        count = tl.load(in_ptr + 2 * kind_stride, mask=in_bounds, other=0.0)
        total += count * mean
        squares += count * mean * mean + deviations
        counts += count
    count = tl.sum(counts, axis=0, keep_dims=True)
    divisor = tl.where(count > 0, count, 1.0)
    mean = tl.sum(total, axis=0, keep_dims=True) / divisor
    variance = tl.sum(squares, axis=0, keep_dims=True) / divisor - mean * mean
    variance = tl.where(variance < 0, 0.0, variance)  # tl.maximum would drop nan
    tl.store(statistics_ptr + channel, mean.to(tl.float32), mask=in_channels)
    tl.store(statistics_ptr + channels + channel, variance.to(tl.float32), mask=in_channels)
    tl.store(statistics_ptr + 2 * channels + channel, count.to(tl.float32), mask=in_channels)
    if running_mean_ptr is not None:
        momentum = tl.where(count > 0, momentum, 0.0)
        unbiased = variance * (count / tl.where(count > 1, count - 1, 1.0))
        old = load_or(running_mean_ptr, channel, in_channels, 0.0)
        new = (momentum * mean + (1 - momentum) * old).to(running_mean_ptr.dtype.element_ty)
        tl.store(running_mean_ptr + channel, new, mask=in_channels)
        old = load_or(running_var_ptr, channel, in_channels, 0.0)
        new = (momentum * unbiased + (1 - momentum) * old).to(running_var_ptr.dtype.element_ty)
        tl.store(running_var_ptr + channel, new, mask=in_channels)


def merge_statistics(partial: Tensor, statistics: Tensor, running: Running | None = None) -> None:
    """Merge shares of the statistics of channels, and update the running statistics.

    Args:
        partial: float32 of shape ``(shares, 3, C)``: mean, sum of squared deviations, count.
        statistics: float32 of shape ``(3, C)`` to write to: mean, biased variance, count.
        running: The running statistics to update, or ``None``.
    """
    splits, _, channels = partial.shape
    mean, variance, momentum = running or (None, None, 0.0)
    launch(
        _merge_statistics_kernel, (cdiv(channels, _MERGE["CHANNELS"]),), partial.device,
        partial, statistics, mean, variance, splits, channels, *partial.stride()[:2], momentum,
        **_MERGE,
    )  # fmt: skip
    if mean is not None and variance is not None:
        torch.autograd.graph.increment_version((mean, variance))  # a graph may have saved them


@torch.no_grad()
def update_running(
    running_mean: Tensor, running_var: Tensor, statistics: Tensor, momentum: float
) -> None:
    """Update the running statistics as the kernel does, in operators that a compiler can trace.

    Args:
        running_mean: The running mean of each channel, ``(C,)``.
        running_var: The running unbiased variance, ``(C,)``.
        statistics: Mean, biased variance and count of each channel, ``(3, C)``.
        momentum: Share of the new statistics. A channel whose count is 0 is not updated.
    """
    mean, variance, count = statistics.unbind()
    unbiased = variance * (count / (count - 1).clamp(min=1))
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(torch.where(count > 0, momentum * new + (1 - momentum) * running, running))
