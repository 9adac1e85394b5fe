"""Layer normalisation: one pass over the rows forward, and one backward."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._dispatch import (
    cdiv,
    launch,
    multiprocessor_count,
    next_power_of_2,
    runs_triton,
)
from lightning_kernels._operator import Operator
from lightning_kernels._triton import tl, triton


@triton.jit
def _layer_norm_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    statistics_ptr,
    num_rows,
    size,
    eps,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Normalise ``ROWS`` rows held in registers; the variance is taken around the mean."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    in_rows, in_columns = first + row < num_rows, column < size
    tile = first * size + (row * size + column)
    x = tl.load(x_ptr + tile, mask=in_rows & in_columns, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1, keep_dims=True) / size
    centred = tl.where(in_columns, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / size
    rstd = tl.rsqrt(variance + eps)
    y = centred * rstd
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + column, mask=in_columns, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=in_columns, other=0.0).to(tl.float32)
    tl.store(y_ptr + tile, y.to(y_ptr.dtype.element_ty), mask=in_rows & in_columns)
    tl.store(statistics_ptr + first + row, mean, mask=in_rows)
    tl.store(statistics_ptr + num_rows + first + row, rstd, mask=in_rows)


@triton.jit
def _layer_norm_backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    statistics_ptr,
    grad_x_ptr,
    partial_weight_ptr,
    partial_bias_ptr,
    num_rows,
    size,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Walk over every ``num_programs``-th tile of rows; read ``x`` and ``grad`` once.

    Each program leaves its share of the parameters' gradients as one float32 row of the partials.
    """
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    in_columns = column < size
    weight = 1.0
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + column, mask=in_columns, other=0.0).to(tl.float32)
    sum_weight = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
    sum_bias = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
    for index in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        first = index * tl.full((), ROWS, tl.int64)
        tile = first * size + (row * size + column)
        in_rows = first + row < num_rows
        in_bounds = in_rows & in_columns
        grad = tl.load(grad_ptr + tile, mask=in_bounds, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + tile, mask=in_bounds, other=0.0).to(tl.float32)
        mean = tl.load(statistics_ptr + first + row, mask=in_rows, other=0.0)
        rstd = tl.load(statistics_ptr + num_rows + first + row, mask=in_rows, other=0.0)
        normalised = tl.where(in_bounds, (x - mean) * rstd, 0.0)
        if partial_weight_ptr is not None:
            sum_weight += grad * normalised
        if partial_bias_ptr is not None:
            sum_bias += grad
        if grad_x_ptr is not None:
            grad *= weight
            mean_grad = tl.sum(grad, axis=1, keep_dims=True) / size
            projection = tl.sum(grad * normalised, axis=1, keep_dims=True) / size
            grad_x = (grad - mean_grad - normalised * projection) * rstd
            tl.store(grad_x_ptr + tile, grad_x.to(grad_x_ptr.dtype.element_ty), mask=in_bounds)
    column = tl.arange(0, BLOCK_SIZE)
    partial = tl.program_id(0).to(tl.int64) * size + column
    if partial_weight_ptr is not None:
        tl.store(partial_weight_ptr + partial, tl.sum(sum_weight, axis=0), mask=column < size)
    if partial_bias_ptr is not None:
        tl.store(partial_bias_ptr + partial, tl.sum(sum_bias, axis=0), mask=column < size)


@triton.jit
def _sum_partials(
    partial_ptr, out_ptr, num_partials, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sum the rows of ``partial`` in a fixed order and store them in ``out``'s type."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, num_partials, ROWS):
        in_bounds = (first + row < num_partials) & (column < size)
        total += tl.load(partial_ptr + (first + row) * size + column, mask=in_bounds, other=0.0)
    result = tl.sum(total, axis=0, keep_dims=True).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + column, result, mask=column < size)


@triton.jit
def _sum_partials_kernel(
    partial_weight_ptr,
    partial_bias_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    num_partials,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum the weight's partials in the first row of programs, the bias' in the second."""
    if tl.program_id(1) == 0:
        if partial_weight_ptr is not None:
            _sum_partials(partial_weight_ptr, grad_weight_ptr, num_partials, size, ROWS, COLUMNS)
    elif partial_bias_ptr is not None:
        _sum_partials(partial_bias_ptr, grad_bias_ptr, num_partials, size, ROWS, COLUMNS)


@functools.lru_cache(maxsize=4096)
def _tile(num_rows: int, size: int, elements: int) -> dict[str, int]:
    """Return a program's tile: about ``elements`` for four warps, more warps for a longer row."""
    block_size = next_power_of_2(size)
    rows = max(1, min(elements // block_size, next_power_of_2(num_rows)))
    num_warps = max(4, min(16, rows * block_size * 4 // elements))
    return {"ROWS": rows, "BLOCK_SIZE": block_size, "num_warps": num_warps}


def _forward(
    x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    y, statistics = _fake(x, size, weight, bias, eps)
    num_rows = x.numel() // size
    tile = _tile(num_rows, size, elements=4096)
    launch(
        _layer_norm_forward_kernel, (cdiv(num_rows, tile["ROWS"]),), x.device,
        x, weight, bias, y, statistics, num_rows, size, eps, **tile,
    )  # fmt: skip
    return y, statistics


def _fake(
    x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Allocate the output and the statistics: the mean of each row, then its 1/sqrt(variance)."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((2, x.numel() // size), dtype=torch.float32)


def _forward_of_backward(
    grad: Tensor, x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias, an empty tensor for what is not needed."""
    grad, x = grad.contiguous(), x.contiguous()
    weight = None if weight is None else weight.contiguous()
    num_rows = x.numel() // size
    tile = _tile(num_rows, size, elements=2048)
    num_programs = min(
        cdiv(num_rows, tile["ROWS"]),
        multiprocessor_count(x.device) * (16 // tile["num_warps"]),  # one wave
    )
    gradients = _fake_of_backward(grad, x, size, weight, bias, statistics, needs)
    grad_x, grad_weight, grad_bias = (
        gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
    )
    partial_weight, partial_bias = (
        x.new_empty((num_programs, size), dtype=torch.float32) if need else None
        for need in needs[1:]
    )
    launch(
        _layer_norm_backward_kernel, (num_programs,), x.device,
        grad, x, weight, statistics, grad_x, partial_weight, partial_bias, num_rows, size, **tile,
    )  # fmt: skip
    if needs[1] or needs[2]:
        launch(
            _sum_partials_kernel, (cdiv(size, 16), 2), x.device,
            partial_weight, partial_bias, grad_weight, grad_bias, num_programs, size,
            ROWS=128, COLUMNS=16, num_warps=4,
        )  # fmt: skip
    return gradients


def _fake_of_backward(
    grad: Tensor, x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x, grad_weight, grad_bias = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if need and tensor is not None
        else x.new_empty(0)
        for tensor, need in zip((x, weight, bias), needs, strict=True)
    )
    return grad_x, grad_weight, grad_bias


_layer_norm_backward = Operator(
    "layer_norm_backward",
    "(Tensor grad, Tensor x, SymInt size, Tensor? weight, Tensor? bias, Tensor statistics,"
    " bool[3] needs) -> (Tensor, Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.size, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
    if grad is None:
        return None, None, None, None, None
    x, weight, bias, statistics = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: in terms that autograd can follow
        return _differentiable_backward(grad, x, ctx.size, weight, bias, ctx.eps)
    needs = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _layer_norm_backward(grad, x, ctx.size, weight, bias, statistics, needs)
    grad_x, grad_weight, grad_bias = (
        gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
    )
    return grad_x, None, grad_weight, grad_bias, None


def _differentiable_backward(
    grad: Tensor, x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, None, Tensor | None, Tensor | None, None]:
    """Return the same gradients as a composition of torch functions, for higher derivatives."""
    rows, grad_rows = x.reshape(-1, size).float(), grad.reshape(-1, size).float()
    centred = rows - rows.mean(1, keepdim=True)
    rstd = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
    normalised = centred * rstd
    grad_weight = grad_bias = None
    if weight is not None:
        grad_weight = (grad_rows * normalised).sum(0).reshape(weight.shape).to(weight.dtype)
    if bias is not None:
        grad_bias = grad_rows.sum(0).reshape(bias.shape).to(bias.dtype)
    scaled = grad_rows if weight is None else grad_rows * weight.reshape(-1).float()
    projection = (scaled * normalised).mean(1, keepdim=True)
    grad_x = (scaled - scaled.mean(1, keepdim=True) - normalised * projection) * rstd
    return grad_x.reshape(x.shape).to(x.dtype), None, grad_weight, grad_bias, None


_layer_norm = Operator(
    "layer_norm",
    "(Tensor x, SymInt size, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise the last dimensions of ``input`` to mean 0 and variance 1, in one pass.

    .. math:: y = (x - \bar x) / \sqrt{s^2 + \epsilon} \cdot \gamma + \beta

    with the mean and the biased variance of each row, both computed in float32. The arguments are
    those of :func:`torch.nn.functional.layer_norm`. The backward pass reads ``input`` and the
    gradient once, sums the parameters' gradients in float32 in a fixed order (a rerun on the same
    device is bitwise equal) and keeps two numbers per row beside its inputs. Where the kernels do
    not run (see :func:`lightning_kernels.route`) this is torch's own function.

    Under autocast torch's returns float32; this returns the type of ``input``, on every route.

    Args:
        input: ``(*, *normalized_shape)``, floating point.
        normalized_shape: The last dimensions of ``input``, at least one.
        weight: Scale of shape ``normalized_shape``, in ``input``'s type or float32.
        bias: Shift, likewise.
        eps: Added to the variance.

    Returns:
        Contiguous tensor with the shape and dtype of ``input``.

    Raises:
        NotImplementedError: If ``input`` is not floating point.
        RuntimeError: If shapes, dtypes or devices do not go together.

    References:
        Ba, Kiros and Hinton, 2016, "Layer normalization", arXiv:1607.06450.
    """
    if not input.is_floating_point():
        raise NotImplementedError(
            f"layer_norm expects a floating-point input, but got {input.dtype}"
        )
    if isinstance(normalized_shape, int):
        raise TypeError(
            f"normalized_shape must be a sequence of ints, got {normalized_shape}: pass"
            f" ({normalized_shape},)"
        )
    size = math.prod(normalized_shape)
    if not runs_triton(input, size):
        return _aten_layer_norm(input, normalized_shape, weight, bias, eps)
    _check(input, tuple(normalized_shape), weight, bias)
    return _layer_norm(input, size, weight, bias, eps)[0]


def _aten_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Call torch's function, which checks its arguments, but return ``input``'s type."""
    if not input.is_cpu:  # ATen mixes types on the CPU only
        weight, bias = (
            parameter.to(input.dtype) if parameter is not None else None
            for parameter in (weight, bias)
        )
    shape = list(normalized_shape)
    try:
        if not torch.is_autocast_enabled(input.device.type):
            return torch.nn.functional.layer_norm(input, shape, weight, bias, eps)
        with torch.autocast(input.device.type, enabled=False):
            return torch.nn.functional.layer_norm(input, shape, weight, bias, eps)
    except RuntimeError:
        _check(input, tuple(shape), weight, bias)  # clearer, where it knows what is wrong
        raise


def _check(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> None:
    """Raise for arguments that do not go together, saying what was got and what is expected."""
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"layer_norm expects an input whose last dimensions are normalized_shape, at least"
            f" one, but got normalized_shape {list(shape)} and input {list(input.shape)}"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if tuple(parameter.shape) != shape:
            raise RuntimeError(
                f"layer_norm expects {name} of shape {list(shape)} (normalized_shape), but got"
                f" {list(parameter.shape)}"
            )
        if parameter.device != input.device:
            raise RuntimeError(
                f"layer_norm expects {name} on {input.device} like input, but got"
                f" {parameter.device}"
            )
        if parameter.dtype not in (input.dtype, torch.float32):
            raise RuntimeError(
                f"layer_norm expects {name} of {input.dtype} (input's) or torch.float32, but got"
                f" {parameter.dtype}"
            )
