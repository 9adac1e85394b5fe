"""Means and variances of channels: merges of partial statistics, and running averages."""

import torch
from torch import Tensor

from lightning_kernels._core.launch import cdiv, launch
from lightning_kernels._core.tiles import load_or
from lightning_kernels._core.triton import tl, triton

Running = tuple[Tensor, Tensor, float]  # running mean, running variance, momentum

_MERGE = {"SPLITS": 128, "CHANNELS": 16, "num_warps": 8}


@triton.jit(do_not_specialize=["splits"])
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
    KINDS: tl.constexpr,
):
    """Merge the statistics of programs or processes (splits), and update the running statistics.

    The order is fixed. The sums are float64, so that the subtraction for the variance loses no
    digit of the float32 statistics. The count of a split may be 0.
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
        if KINDS == 4:
            mean += tl.load(in_ptr + 3 * kind_stride, mask=in_bounds, other=0.0)
        deviations = tl.load(in_ptr + kind_stride, mask=in_bounds, other=0.0)
        count = tl.load(in_ptr + 2 * kind_stride, mask=in_bounds, other=0.0)
        total += count * mean
        squares += count * mean * mean + deviations
        counts += count
    count = tl.sum(counts, axis=0, keep_dims=True)
    divisor = tl.where(count > 0, count, 1.0)
    mean = tl.sum(total, axis=0, keep_dims=True) / divisor
    variance = tl.sum(squares, axis=0, keep_dims=True) / divisor - mean * mean
    variance = tl.where(variance < 0, 0.0, variance)  # keeps nan, which tl.maximum would drop
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
    """Merge the statistics that programs or processes computed, and update the running statistics.

    Args:
        partial: float32 of shape ``(splits, 3, C)``: mean, sum of squared deviations and count of
            the values that each program or process (split) has read of each channel. Or
            ``(splits, 4, C)``: the last row is added to the mean, whose float32 would be rounded.
        statistics: float32 of shape ``(3, C)`` to write to: mean, biased variance and count of each
            channel.
        running: The running statistics to update, or ``None``.
    """
    splits, kinds, channels = partial.shape
    mean, variance, momentum = running or (None, None, 0.0)
    launch(
        _merge_statistics_kernel, (cdiv(channels, _MERGE["CHANNELS"]),), partial.device,
        partial, statistics, mean, variance, splits, channels, *partial.stride()[:2], momentum,
        **_MERGE, KINDS=kinds,
    )  # fmt: skip
    if mean is not None and variance is not None:
        # Autograd must notice the change if a graph has saved the running statistics.
        torch.autograd.graph.increment_version((mean, variance))


@torch.no_grad()
def update_running(
    running_mean: Tensor, running_var: Tensor, statistics: Tensor, momentum: float
) -> None:
    """Update the running statistics like the kernel, by torch operators that compilers can trace.

    A channel whose count is 0 is not updated.

    Args:
        running_mean: The running mean of each channel, ``(C,)``.
        running_var: The running unbiased variance of each channel, ``(C,)``.
        statistics: Mean, biased variance and count of each channel, ``(3, C)``.
        momentum: Weight of the new statistics in the running average.
    """
    mean, variance, count = statistics.unbind()
    unbiased = variance * (count / (count - 1).clamp(min=1))
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(torch.where(count > 0, momentum * new + (1 - momentum) * running, running))
