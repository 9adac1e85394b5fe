"""Group norm as an operator.

It reads a tensor once if a program holds a slab in registers, else twice: the second time from the
cache, or if several programs share a slab, from memory.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.activation import aten_activate
from lightning_kernels._core.gradients import empty_gradients, only_needed, recompute_gradients
from lightning_kernels._core.launch import launch, multiprocessor_count
from lightning_kernels._core.layout import (
    contiguous,
    has_channels_innermost,
    output_format,
    to_dense,
    with_strides,
)
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.partial_sums import sum_partials
from lightning_kernels._core.statistics import merge_statistics
from lightning_kernels._group_norm.aten import torch_group_norm
from lightning_kernels._group_norm.backward_kernels import (
    _group_norm_apply_backward_kernel,
    _group_norm_backward_kernel,
    _group_norm_reduce_kernel,
    _group_norm_sum_kernel,
)
from lightning_kernels._group_norm.kernels import (
    _group_norm_apply_kernel,
    _group_norm_forward_kernel,
    _group_norm_statistics_kernel,
)
from lightning_kernels._group_norm.layout import Plan, plan_of


def _cut(x: Tensor, groups: int, backward: bool) -> tuple[Plan, tuple[int, ...], float]:
    """Return how ``x`` is cut into slabs and programs.

    Returns:
        The plan. The sizes that all kernels take. The number of elements per group, as a float
        because it may need more than 32 bits.
    """
    samples, channels = x.shape[:2]
    pixels = x.shape[2:].numel()
    plan = plan_of(
        samples, channels, pixels, groups, has_channels_innermost(x), backward,
        x.element_size(), multiprocessor_count(x.device),
    )  # fmt: skip
    sizes = (samples * groups, groups, channels, pixels, plan.slabs, plan.width, channels // groups)
    return plan, sizes, float(channels // groups * pixels)


def _forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None, parameter: float, dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output, and the mean and variance of each group.

    The output has ``dtype``, or the dtype of ``x`` if ``dtype`` is ``None``.
    """
    x = to_dense(x)
    weight, bias = contiguous(weight, bias)
    y, statistics = _fake(x, groups, weight, bias, eps, activation, parameter, dtype)
    plan, sizes, size = _cut(x, groups, backward=False)
    programs = x.shape[0] * plan.slabs
    if not plan.splits:
        launch(
            _group_norm_forward_kernel, (programs,), x.device,
            x, weight, bias, y, statistics, *sizes, size, eps, parameter,
            **plan.constants, ACTIVATION=activation,
        )  # fmt: skip
        return y, statistics
    statistics = _measure(x, plan, sizes)
    launch(
        _group_norm_apply_kernel, (programs * plan.splits,), x.device,
        x, weight, bias, y, statistics, *sizes, plan.splits, eps, parameter,
        **plan.constants, ACTIVATION=activation,
    )  # fmt: skip
    return y, statistics


def _measure(x: Tensor, plan: Plan, sizes: tuple[int, ...]) -> Tensor:
    """Return the mean and variance of each group, if several programs share a slab."""
    all_groups, group_size = sizes[0], sizes[-1]
    partial = x.new_empty((plan.splits * group_size, 3, all_groups), dtype=torch.float32)
    launch(
        _group_norm_statistics_kernel, (x.shape[0] * plan.slabs * plan.splits,), x.device,
        x, partial, *sizes, plan.splits, **plan.constants,
    )  # fmt: skip
    statistics = x.new_empty((3, all_groups), dtype=torch.float32)
    merge_statistics(partial, statistics)
    return statistics[:2]  # drops the counts


def _fake(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None, parameter: float, dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x = to_dense(x)
    y = torch.empty_like(x, dtype=dtype, memory_format=output_format(x))
    return y, x.new_empty((2, x.shape[0] * groups), dtype=torch.float32)


def _forward_of_backward(
    grad: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, eps: float, activation: str | None, parameter: float, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias; empty where ``needs`` is False."""
    x = to_dense(x)
    grad = with_strides(grad, x.stride())
    weight, bias = contiguous(weight, bias)
    gradients = _fake_of_backward(
        grad, x, groups, weight, bias, statistics, eps, activation, parameter, needs
    )
    grad_x, grad_weight, grad_bias = only_needed(gradients, needs)
    plan, sizes, size = _cut(x, groups, backward=True)
    samples, channels = x.shape[:2]
    rows = samples * max(1, plan.splits)
    partial = None
    if needs[1] or needs[2] or plan.splits:
        partial = x.new_empty((2, rows, channels), dtype=torch.float32)
    programs, stride = rows * plan.slabs, rows * channels
    tensors = grad, x, weight, bias, statistics
    constants = {**plan.constants, "ACTIVATION": activation}
    if not plan.splits:
        launch(
            _group_norm_backward_kernel, (programs,), x.device,
            *tensors, grad_x, partial, *sizes, stride, size, eps, parameter, **constants,
        )  # fmt: skip
    else:
        launch(
            _group_norm_reduce_kernel, (programs,), x.device,
            *tensors, partial, *sizes, plan.splits, stride, eps, parameter, **constants,
        )  # fmt: skip
        if grad_x is not None and partial is not None:
            sums = partial.new_empty((2, sizes[0]))  # of grad * weight * normalised, grad * weight
            launch(
                _group_norm_sum_kernel, (sizes[0],), x.device,
                partial, weight, sums, *sizes[:3], sizes[-1], plan.splits, stride, size,
                SUMS=128, num_warps=1,
            )  # fmt: skip
            launch(
                _group_norm_apply_backward_kernel, (programs,), x.device,
                *tensors, sums, grad_x, *sizes, plan.splits, eps, parameter, **constants,
            )  # fmt: skip
    if partial is not None:
        sum_partials(only_needed(partial.unbind(), needs[1:]), (grad_weight, grad_bias))
    return gradients


def _fake_of_backward(
    grad: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, eps: float, activation: str | None, parameter: float, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = to_dense(x)
    grad_x = torch.empty_like(x) if needs[0] else x.new_empty(0)
    grad_weight, grad_bias = empty_gradients(x, (weight, bias), needs[1:])
    return grad_x, grad_weight, grad_bias


_group_norm_backward = Operator(
    "group_norm_backward",
    "(Tensor grad, Tensor x, SymInt groups, Tensor? weight, Tensor? bias, Tensor statistics,"
    " float eps, str? activation, float parameter, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.groups, weight, bias, *ctx.numbers, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    x, weight, bias, statistics = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    if torch.is_grad_enabled():  # the backward pass runs with create_graph=True
        results = _differentiable_backward(grad, x, ctx.groups, weight, bias, needs, *ctx.numbers)
    else:
        gradients = _group_norm_backward(
            grad, x, ctx.groups, weight, bias, statistics, *ctx.numbers, needs
        )
        results = only_needed(gradients, needs)
    return results[0], None, results[1], results[2], None, None, None, None


def _differentiable_backward(
    grad: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    needs: list[bool], eps: float, activation: str | None, parameter: float,
) -> list[Tensor | None]:  # fmt: skip
    """Return the gradients by torch's functions, which can be differentiated again."""

    def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return aten_activate(torch_group_norm(x, groups, weight, bias, eps), activation, parameter)

    return recompute_gradients(normalise, grad, (x, weight, bias), needs)


group_norm_operator = Operator(
    "group_norm",
    "(Tensor x, SymInt groups, Tensor? weight, Tensor? bias, float eps, str? activation,"
    " float parameter, ScalarType? dtype) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
