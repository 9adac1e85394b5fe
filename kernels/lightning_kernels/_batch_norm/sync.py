"""Batch norm over several processes: collectives, and a composition of torch's functions.

In the forward pass every process sends the mean, biased variance and count of each channel. In the
backward pass it sends two sums per channel. Each pass takes one collective. The size and dtype of
the messages are the same with kernels and with torch's functions, so a process that runs kernels
can work together with a process that does not.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_kernels._core.activation import aten_activate
from lightning_kernels._core.statistics import update_running


def group_name(process_group: Any) -> str | None:
    """Return the name of a process group, or ``None`` if it has one process.

    Raises:
        TypeError: If ``process_group`` is not a process group that this process is in.
    """
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "batch_norm expects process_group to be a torch.distributed.ProcessGroup that this"
            f" process is in, but got {process_group!r}"
        )
    return process_group.group_name if process_group.size() > 1 else None


def _resolve(group: str) -> dist.ProcessGroup:
    from torch._C._distributed_c10d import (
        _resolve_process_group,  # missing in builds without distributed
    )

    return _resolve_process_group(group)  # type: ignore[arg-type]  # a str of torch's own


def gather(statistics: Tensor, group: str) -> Tensor:
    """Gather the statistics of all processes, and turn variances into sums of squared deviations.

    Args:
        statistics: Mean, biased variance and count of each channel, ``(3, C)``.
        group: Name of the process group.

    Returns:
        Mean, sum of squared deviations and count of every process, ``(processes, 3, C)``.
    """
    processes = _resolve(group)
    rows, channels = statistics.shape
    everyone = statistics.new_empty((processes.size() * rows, channels))
    # torch 2.14 and later warn about the old name.
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    all_gather(everyone, statistics, group=processes)
    everyone = everyone.view(-1, rows, channels)
    everyone[:, 1] *= everyone[:, 2]
    return everyone


def average(sums: Tensor, count: Tensor, group: str) -> Tensor:
    """Sum ``sums`` over all processes, and divide by ``count``, the number of values. In place."""
    dist.all_reduce(sums, group=_resolve(group))
    return sums.div_(count)


def no_second_derivative() -> RuntimeError:
    """Return the error for ``create_graph=True`` with a process group."""
    return RuntimeError(
        "batch_norm has no second derivative through several processes: call backward without"
        " create_graph, or leave out process_group"
    )


@torch.compiler.disable
def aten_sync_batch_norm(
    group: str, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float,
    activation: str | None, parameter: float, residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compute batch norm in training by torch's functions and two collectives."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
    y, statistics = _SyncBatchNorm.apply(x, weight, bias, eps, group)
    if running_mean is not None and running_var is not None:
        update_running(running_mean, running_var, statistics, momentum)
    return aten_activate(y if residual is None else y + residual, activation, parameter)


class _SyncBatchNorm(torch.autograd.Function):
    """Normalise by the statistics of all processes, which ATen gets as running statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str
    ) -> tuple[Tensor, Tensor]:
        mean, variance, count = _joint(gather(_statistics(x), group))
        statistics = torch.stack((mean, variance, count))
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(statistics)
        if x.numel() == 0:  # ATen would divide by the number of elements
            return torch.empty_like(x), statistics
        y = torch.nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise no_second_derivative()
        x, weight, mean, variance, count = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        grad_weight, grad_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel() > 0:
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, scale, mean, variance, None, None, False, ctx.eps, [False, True, True]
            )
        grad_x = None
        if ctx.needs_input_grad[0]:
            sums = average(torch.stack((grad_bias, grad_weight)), count, ctx.group)
            inverse = (variance + ctx.eps).rsqrt()
            columns = mean, inverse * sums[1], sums[0], scale * inverse
            shape = [1, -1] + [1] * (x.dim() - 2)
            shift, slope, offset, factor = (column.reshape(shape) for column in columns)
            grad_x = ((grad - offset - (x - shift) * slope) * factor).to(x.dtype)
        gradients = zip((grad_x, grad_weight, grad_bias), ctx.needs_input_grad[:3], strict=True)
        return (*(grad if need else None for grad, need in gradients), None, None)


def _statistics(x: Tensor) -> Tensor:
    """Return mean, biased variance and count of each channel; zeros for an empty batch."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        return x.new_zeros((3, x.shape[1]), dtype=dtype)
    dims = [i for i in range(x.dim()) if i != 1]
    variance, mean = torch.var_mean(x.to(dtype), dims, correction=0)
    return torch.stack((mean, variance, torch.full_like(mean, x.numel() // x.shape[1])))


def _joint(everyone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the statistics of all processes in float64, as the kernel does."""
    mean, deviations, count = everyone.double().unbind(1)
    total = count.sum(0)
    joint = (count * mean).sum(0) / total
    variance = (deviations + count * (mean - joint).square()).sum(0) / total
    dtype = everyone.dtype
    return joint.to(dtype), variance.to(dtype), total.to(dtype)
