"""Batch norm as an operator. It takes two passes over the tensor forward, and two backward."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._batch_norm.aten import aten_batch_norm
from lightning_kernels._batch_norm.kernels import (
    _batch_norm_backward_kernel,
    _batch_norm_forward_kernel,
    _batch_norm_reduce_kernel,
    _batch_norm_statistics_kernel,
    _batch_norm_sum_kernel,
)
from lightning_kernels._batch_norm.layout import REDUCE_REGISTERS, Plan, plan_of
from lightning_kernels._batch_norm.signs import signs_shape, unpack
from lightning_kernels._batch_norm.sync import average, gather, no_second_derivative
from lightning_kernels._core.gradients import empty_gradients, only_needed, recompute_gradients
from lightning_kernels._core.launch import cdiv, launch, multiprocessor_count
from lightning_kernels._core.layout import (
    contiguous,
    has_channels_innermost,
    output_format,
    to_dense,
    with_strides,
)
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.statistics import Running, merge_statistics

_SUM = {"SPLITS": 128, "CHANNELS": 16, "num_warps": 8}


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor | None, variance: Tensor | None, eps: float,
    activation: str | None, parameter: float, keep_signs: bool, group: str | None,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalise by ``mean`` and ``variance``. If they are ``None``, use the batch statistics.

    Returns:
        The output. The batch statistics: mean, biased variance and count of each channel, over all
        processes if ``group`` is given; empty if ``mean`` and ``variance`` are given. The signs of
        the values before the activation, eight in a byte; empty without ``keep_signs``.
    """
    x = to_dense(x)
    residual = None if residual is None else with_strides(residual, x.stride())
    weight, bias, mean, variance = contiguous(weight, bias, mean, variance)
    y, statistics, signs = _fake(
        x, residual, weight, bias, mean, variance, eps, activation, parameter, keep_signs, group
    )
    plan = _plan(x)
    training = mean is None
    if training:
        _measure(x, plan, statistics, group, running)
        mean = variance = statistics
    launch(
        _batch_norm_forward_kernel, (plan.programs,), x.device,
        x, residual, weight, bias, mean, variance, y, signs if keep_signs else None,
        *plan.matrix, eps, parameter, **plan.map_tile, TRAINING=training, ACTIVATION=activation,
    )  # fmt: skip
    return y, statistics, signs


def _plan(x: Tensor) -> Plan:
    multiprocessors = multiprocessor_count(x.device)
    return plan_of(x.shape, has_channels_innermost(x), x.element_size(), multiprocessors)


def _measure(
    x: Tensor, plan: Plan, statistics: Tensor, group: str | None, running: Running | None
) -> None:
    """Write the batch statistics to ``statistics``, and update the running statistics, if given."""
    channels, splits = x.shape[1], plan.splits[0]
    partial = x.new_empty((4, splits, channels), dtype=torch.float32).transpose(0, 1)
    launch(
        _batch_norm_statistics_kernel, (plan.groups[0] * splits,), x.device,
        x, partial, *plan.matrix, *plan.groups, **plan.sum_tile, maxnreg=plan.registers,
    )  # fmt: skip
    if group is not None:
        merge_statistics(partial, statistics)
        partial = gather(statistics, group)
    merge_statistics(partial, statistics, running)


def _fake(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor | None, variance: Tensor | None, eps: float,
    activation: str | None, parameter: float, keep_signs: bool, group: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = to_dense(x)
    signs = x.new_empty(signs_shape(x) if keep_signs else (0,), dtype=torch.uint8)
    statistics = x.new_empty((3 if mean is None else 0, x.shape[1]), dtype=torch.float32)
    return torch.empty_like(x, memory_format=output_format(x)), statistics, signs


def _forward_of_backward(
    grad: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor | None, variance: Tensor | None, statistics: Tensor, signs: Tensor, eps: float,
    activation: str | None, parameter: float, group: str | None, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, residual, weight and bias; empty where ``needs`` is False."""
    x = to_dense(x)
    grad = with_strides(grad, x.stride())
    residual = None if residual is None else with_strides(residual, x.stride())
    weight, bias, mean, variance = contiguous(weight, bias, mean, variance)
    gradients = _fake_of_backward(
        grad, x, residual, weight, bias, mean, variance, statistics, signs, eps, activation,
        parameter, group, needs,
    )  # fmt: skip
    grad_x, grad_residual, grad_weight, grad_bias = only_needed(gradients, needs)
    plan = _plan(x)
    training = mean is None
    if mean is None or variance is None:
        mean = variance = statistics
    kept = signs if signs.numel() > 0 else None
    inputs = grad, x, residual, kept, weight, bias, mean, variance
    constants = {"TRAINING": training, "ACTIVATION": activation}
    channels, splits = x.shape[1], plan.splits[1]
    sums, count = None, float(x.numel() // channels)
    if (training and needs[0]) or needs[2] or needs[3]:
        partial = x.new_empty((2, splits, channels), dtype=torch.float32)
        sums = x.new_empty((2, channels), dtype=torch.float32)
        tile = plan.sum_tile
        if residual is not None:  # a third tensor is on its way
            tile = {**tile, "STAGES": 2}
        launch(
            _batch_norm_reduce_kernel, (plan.groups[0] * splits,), x.device,
            *inputs, partial, *plan.matrix, *plan.groups, eps, parameter,
            **tile, **constants, maxnreg=REDUCE_REGISTERS,
        )  # fmt: skip
        launch(
            _batch_norm_sum_kernel, (cdiv(channels, _SUM["CHANNELS"]),), x.device,
            partial, sums, grad_weight, grad_bias, splits, channels, **_SUM,
        )  # fmt: skip
    if sums is not None and group is not None and needs[0]:
        sums, count = average(sums, statistics[2], group), 1.0
    if needs[0] or needs[1]:
        tile = plan.map_tile
        if residual is not None:  # more warps, because a tile of one more tensor is in registers
            tile = {**tile, "num_warps": 8}
        launch(
            _batch_norm_backward_kernel, (plan.programs,), x.device,
            *inputs, sums, grad_x, grad_residual, *plan.matrix, count, eps,
            parameter, **tile, **constants,
        )  # fmt: skip
    return gradients


def _fake_of_backward(
    grad: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor | None, variance: Tensor | None, statistics: Tensor, signs: Tensor, eps: float,
    activation: str | None, parameter: float, group: str | None, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x = to_dense(x)
    grad_x, grad_residual = (torch.empty_like(x) if need else x.new_empty(0) for need in needs[:2])
    grad_weight, grad_bias = empty_gradients(x, (weight, bias), needs[2:])
    return grad_x, grad_residual, grad_weight, grad_bias


_batch_norm_backward = Operator(
    "batch_norm_backward",
    "(Tensor grad, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean,"
    " Tensor? variance, Tensor statistics, Tensor signs, float eps, str? activation,"
    " float parameter, str? group, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, residual, weight, bias, mean, variance, *ctx.numbers, keep_signs, ctx.group = inputs[:11]
    _, statistics, signs = output
    if keep_signs or ctx.numbers[1] is None:
        residual = None  # the backward pass reads the signs instead; without activation, neither
    ctx.save_for_backward(x, residual, weight, bias, mean, variance, statistics, signs)
    ctx.num_inputs = len(inputs)
    ctx.mark_non_differentiable(statistics, signs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (ctx.num_inputs - 4)
    if grad is None:
        return (None,) * 4 + nothing
    needs = list(ctx.needs_input_grad[:4])
    if torch.is_grad_enabled():  # the backward pass runs with create_graph=True
        if ctx.group is not None:
            raise no_second_derivative()
        return _differentiable_backward(grad, ctx.saved_tensors, needs, *ctx.numbers) + nothing
    activation = ctx.numbers[1]
    needed = [needs[0], needs[1] and activation is not None, *needs[2:]]
    if any(needed):
        gradients = _batch_norm_backward(grad, *ctx.saved_tensors, *ctx.numbers, ctx.group, needed)
        results = only_needed(gradients, needed)
    else:
        results = [None] * 4
    if needs[1] and activation is None:
        results[1] = grad
    return (*results, *nothing)


def _differentiable_backward(
    grad: Tensor, saved: tuple[Any, ...], needs: list[bool],
    eps: float, activation: str | None, parameter: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients by torch's functions, which can be differentiated again."""
    x, residual, weight, bias, mean, variance, _, signs = saved
    if signs.numel() > 0:  # the activation is piecewise linear, so its slope has no gradient
        slope = torch.where(unpack(signs, x), 1.0, parameter)
        grad, activation = grad * slope, None
    mean, variance = (None if t is None else t.float() for t in (mean, variance))

    def normalise(
        x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        return aten_batch_norm(
            x, mean, variance, weight, bias, mean is None, 0.0, eps, activation, parameter, residual
        )

    results = recompute_gradients(normalise, grad, (x, residual, weight, bias), needs)
    if needs[1] and activation is None:
        results[1] = grad.to(x.dtype)
    return tuple(results)


batch_norm_operator = Operator(
    "batch_norm",
    "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance,"
    " float eps, str? activation, float parameter, bool keep_signs, str? group)"
    " -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
