"""Batch normalisation with residual and activation: two passes forward, two backward."""

import functools
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._batch_norm.aten import aten_batch_norm, check, update_running
from lightning_kernels._batch_norm.kernels import (
    _batch_norm_backward_kernel,
    _batch_norm_forward_kernel,
    _batch_norm_merge_kernel,
    _batch_norm_reduce_kernel,
    _batch_norm_statistics_kernel,
    _batch_norm_sum_kernel,
)
from lightning_kernels._batch_norm.layout import Plan, dense, is_channels_last, like, plan_of
from lightning_kernels._batch_norm.sync import (
    aten_sync_batch_norm,
    average,
    gather,
    group_name,
    no_second_derivative,
)
from lightning_kernels._core.activation import PIECEWISE_LINEAR, resolve_parameter
from lightning_kernels._core.dispatch import (
    cdiv,
    is_traced,
    launch,
    multiprocessor_count,
    norm_runs_triton,
)
from lightning_kernels._core.operator import Operator

_MERGE = {"SPLITS": 128, "CHANNELS": 16, "num_warps": 8}

Running = tuple[Tensor | None, Tensor | None, float]  # mean, variance, momentum


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor | None, variance: Tensor | None, eps: float,
    activation: str | None, parameter: float, keep_signs: bool, group: str | None,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalise by ``mean`` and ``variance``, without them by the batch's own.

    Returns:
        The output; mean, biased variance and count of each channel of the batch, with ``group``
        of all its processes' batches; the signs before the activation, eight to a byte. The last
        two are empty if not needed.
    """
    x = dense(x)
    residual = None if residual is None else like(residual, x)
    weight, bias, mean, variance = (
        None if t is None else t.contiguous() for t in (weight, bias, mean, variance)
    )
    y, statistics, signs = _fake(
        x, residual, weight, bias, mean, variance, eps, activation, parameter, keep_signs, group
    )
    plan = plan_of(x.shape, is_channels_last(x), multiprocessor_count(x.device))
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


def _measure(
    x: Tensor, plan: Plan, statistics: Tensor, group: str | None, running: Running | None
) -> None:
    """Write the statistics of the batch, and update the running ones if there are any."""
    channels, splits = x.shape[1], plan.splits[0]
    partial = x.new_empty((3, splits, channels), dtype=torch.float32).transpose(0, 1)
    launch(
        _batch_norm_statistics_kernel, (plan.groups * splits,), x.device,
        x, partial, *plan.sizes, plan.groups, **plan.sum_tile,
        maxnreg=64 if x.element_size() == 2 else 80,  # float32 has as much under way with fewer
    )  # fmt: skip
    if group is not None:
        _merge(partial, statistics, None)
        partial = gather(statistics, group)
    _merge(partial, statistics, running)


def _merge(partial: Tensor, statistics: Tensor, running: Running | None) -> None:
    splits, _, channels = partial.shape
    mean, variance, momentum = running or (None, None, 0.0)
    launch(
        _batch_norm_merge_kernel, (cdiv(channels, _MERGE["CHANNELS"]),), partial.device,
        partial, statistics, mean, variance, splits, channels, *partial.stride()[:2], momentum,
        **_MERGE,
    )  # fmt: skip
    if mean is not None and variance is not None:
        torch.autograd.graph.increment_version((mean, variance))  # a graph may have saved them


def _fake(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor | None, variance: Tensor | None, eps: float,
    activation: str | None, parameter: float, keep_signs: bool, group: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = dense(x)
    signs = x.new_empty(_signs_shape(x) if keep_signs else (0,), dtype=torch.uint8)
    statistics = x.new_empty((3 if mean is None else 0, x.shape[1]), dtype=torch.float32)
    # As torch: where sizes of 1 make a tensor both, the output has the strides of a contiguous one.
    layout = torch.contiguous_format if x.is_contiguous() else torch.preserve_format
    return torch.empty_like(x, memory_format=layout), statistics, signs


def _signs_shape(x: Tensor) -> tuple[int, int]:
    """Return the rows of ``x`` as the kernels see it, and the bytes for a bit of each column."""
    if is_channels_last(x):
        return x.numel() // x.shape[1], cdiv(x.shape[1], 8)
    return x.shape[0] * x.shape[1], cdiv(x.shape[2:].numel(), 8)


def _forward_of_backward(
    grad: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor | None, variance: Tensor | None, statistics: Tensor, signs: Tensor, eps: float,
    activation: str | None, parameter: float, group: str | None, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, residual, weight and bias, empty tensors if not needed."""
    x = dense(x)
    grad = like(grad, x)
    residual = None if residual is None else like(residual, x)
    weight, bias, mean, variance = (
        None if t is None else t.contiguous() for t in (weight, bias, mean, variance)
    )
    gradients = _fake_of_backward(
        grad, x, residual, weight, bias, mean, variance, statistics, signs, eps, activation,
        parameter, group, needs,
    )  # fmt: skip
    grad_x, grad_residual, grad_weight, grad_bias = (
        gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
    )
    plan = plan_of(x.shape, is_channels_last(x), multiprocessor_count(x.device))
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
        launch(
            _batch_norm_reduce_kernel, (plan.groups * splits,), x.device,
            *inputs, partial, *plan.sizes, plan.groups, eps, parameter,
            **plan.sum_tile, **constants, maxnreg=128,
        )  # fmt: skip
        launch(
            _batch_norm_sum_kernel, (cdiv(channels, _MERGE["CHANNELS"]),), x.device,
            partial, sums, grad_weight, grad_bias, splits, channels, **_MERGE,
        )  # fmt: skip
    if sums is not None and group is not None and needs[0]:
        sums, count = average(sums, statistics[2], group), 1.0
    if needs[0] or needs[1]:
        tile = plan.map_tile
        if residual is not None:  # one tensor more in registers, and an activation to compute
            tile = {**tile, "num_warps": 4 * tile["num_warps"]}
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
    x = dense(x)
    grad_x, grad_residual = (torch.empty_like(x) if need else x.new_empty(0) for need in needs[:2])
    grad_weight, grad_bias = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if need and tensor is not None
        else x.new_empty(0)
        for tensor, need in zip((weight, bias), needs[2:], strict=True)
    )
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
        residual = None  # a bit of each element says enough, or nothing needs to be known
    ctx.save_for_backward(x, residual, weight, bias, mean, variance, statistics, signs)
    ctx.num_inputs = len(inputs)
    ctx.mark_non_differentiable(statistics, signs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (ctx.num_inputs - 4)
    if grad is None:
        return (None,) * 4 + nothing
    needs = list(ctx.needs_input_grad[:4])
    if torch.is_grad_enabled():  # create_graph=True: in terms that autograd can follow
        if ctx.group is not None:
            raise no_second_derivative()
        return _differentiable_backward(grad, ctx.saved_tensors, needs, *ctx.numbers) + nothing
    activation = ctx.numbers[1]
    needed = [needs[0], needs[1] and activation is not None, *needs[2:]]
    if any(needed):
        gradients = _batch_norm_backward(grad, *ctx.saved_tensors, *ctx.numbers, ctx.group, needed)
        results = [t if need else None for t, need in zip(gradients, needed, strict=True)]
    else:
        results = [None] * 4
    if needs[1] and activation is None:
        results[1] = grad
    return (*results, *nothing)


def _differentiable_backward(
    grad: Tensor, saved: tuple[Any, ...], needs: list[bool],
    eps: float, activation: str | None, parameter: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the same gradients through torch's functions, for higher derivatives."""
    # Views, so that a path between two inputs further back does not count here.
    x = saved[0].view_as(saved[0])
    residual, weight, bias = (None if t is None else t.view_as(t) for t in saved[1:4])
    mean, variance, _, signs = saved[4:]
    if signs.numel() > 0:  # piecewise linear, so that the slope is a constant
        slope = torch.where(_unpack(signs, x), 1.0, parameter)
        grad, activation = grad * slope, None
    grad_residual = grad.to(x.dtype) if activation is None else None
    mean, variance, scale, shift = (
        None if t is None else t.float() for t in (mean, variance, weight, bias)
    )
    y = aten_batch_norm(
        x.float(), mean, variance, scale, shift, mean is None, 0.0, eps, activation, parameter,
        None if residual is None else residual.float(),
    )  # fmt: skip
    results: list[Tensor | None] = [None, grad_residual if needs[1] else None, None, None]
    inputs = enumerate((x, residual, weight, bias))
    wanted = {i: tensor for i, tensor in inputs if tensor is not None and needs[i]}
    if wanted:
        gradients = torch.autograd.grad(y, [*wanted.values()], grad.float(), create_graph=True)
        for i, gradient in zip(wanted, gradients, strict=True):
            results[i] = gradient
    return tuple(results)


def _unpack(signs: Tensor, x: Tensor) -> Tensor:
    """Return the kept bits as booleans in the shape of ``x``."""
    x = dense(x)
    bits = (signs.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=x.device)) & 1
    bits = bits.flatten(1)
    if not is_channels_last(x):
        return bits[:, : x.shape[2:].numel()].reshape(x.shape).bool()
    rows = bits[:, : x.shape[1]].reshape(x.shape[0], *x.shape[2:], x.shape[1])
    return rows.movedim(-1, 1).bool()


_batch_norm = Operator(
    "batch_norm",
    "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance,"
    " float eps, str? activation, float parameter, bool keep_signs, str? group)"
    " -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    activation_parameter: float | None = None,
    residual: Tensor | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Normalise each channel of ``x``, add ``residual`` and activate, in two passes.

    .. math:: y = a((x - \bar x) / \sqrt{s^2 + \epsilon} \cdot \gamma + \beta + r)

    with mean and biased variance of each channel over the batch if ``training``, else the running
    ones. The first arguments are those of :func:`torch.nn.functional.batch_norm`. Statistics and
    sums are float32, merged in a fixed order: a rerun on the same device is bitwise equal.

    The backward pass keeps, beside the inputs that it needs, two numbers per channel; with a
    residual and relu or leaky_relu also one bit per element, in place of the residual; with a
    residual and another activation the residual itself, which the graph holds anyway. What stood
    before the activation is never kept but computed again.

    Where the kernels do not run (see :func:`lightning_kernels.route`) this is a composition of
    torch's own functions. Under autocast, too, the result has the type of ``x``.

    Args:
        x: ``(N, C, *)`` of any strides, floating point.
        running_mean: Shape ``(C,)``, in ``x``'s type or float32, or ``None``. If ``training``,
            updated in place: ``(1 - momentum) * running_mean + momentum * mean``.
        running_var: Likewise, with the unbiased variance.
        weight: Scale of shape ``(C,)``, in ``x``'s type or float32.
        bias: Shift, likewise.
        training: Whether to use and record the statistics of this batch.
        momentum: Share of this batch in the running statistics.
        eps: Added to the variance.
        activation: ``None``, ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"silu"`` or
            ``"gelu"`` (exact).
        activation_parameter: Slope of leaky_relu (by default 0.01) or alpha of elu (1.0).
        residual: Added before the activation, of shape and type of ``x``.
        process_group: If ``training``, statistics are those of the batches of all its processes
            together, which may differ in size and be empty, and gradients go through them: with
            one collective forward and one backward (``torch.distributed.ProcessGroup``). The
            gradients of ``weight`` and ``bias`` are those of the own batch, for the caller to sum.

    Returns:
        Tensor of the shape, type and memory format of ``x``: channels last or contiguous.

    Raises:
        ValueError: If training on a single value per channel, before anything is changed; if
            ``eps`` or the activation is none that there can be; if training with one of the two
            running statistics.
        NotImplementedError: If ``x`` is not floating point.
        RuntimeError: If shapes, types or devices do not go together; if running statistics are
            missing in evaluation, or require gradients; if a second derivative is taken through
            several processes.

    References:
        Ioffe and Szegedy, 2015, "Batch normalization: accelerating deep network training by
        reducing internal covariate shift", arXiv:1502.03167.
    """
    parameter = resolve_parameter(activation, activation_parameter)
    group = group_name(process_group) if training and process_group is not None else None
    check(
        x, running_mean, running_var, weight, bias, residual, training, momentum, eps,
        group is not None,
    )  # fmt: skip
    if not norm_runs_triton(x):
        normalise = aten_batch_norm
        if group is not None:
            normalise = functools.partial(aten_sync_batch_norm, group)
        return normalise(
            x, running_mean, running_var, weight, bias, training, momentum, eps,
            activation, parameter, residual,
        )  # fmt: skip
    keep_signs = (
        residual is not None
        and activation in PIECEWISE_LINEAR
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (x, residual, weight, bias))
    )
    mean, variance = (None, None) if training else (running_mean, running_var)
    arguments = (
        x, residual, weight, bias, mean, variance, float(eps), activation, parameter, keep_signs,
        group,
    )  # fmt: skip
    if not training:
        return _batch_norm(*arguments)[0]
    if running_mean is None or running_var is None:
        return _batch_norm(*arguments)[0]
    if not is_traced(x) and running_mean.is_contiguous() and running_var.is_contiguous():
        # The registered operator has no such argument, for it may change none.
        return _batch_norm(*arguments, (running_mean, running_var, float(momentum)))[0]
    y, statistics, _ = _batch_norm(*arguments)
    update_running(running_mean, running_var, statistics, momentum)
    return y
