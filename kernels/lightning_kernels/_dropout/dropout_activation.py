"""Bias, activation and dropout in one pass, of which nothing is kept but the inputs."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.activation import (
    activate,
    activation_gradient,
    aten_activate,
    resolve_parameter,
)
from lightning_kernels._core.dispatch import cdiv, launch, multiprocessor_count, runs_triton
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.random import random_rows, reserve
from lightning_kernels._core.rate import load_rate, resolve_rate, survivors_scale, threshold_of
from lightning_kernels._core.tiles import place_of_tile, tile_of
from lightning_kernels._core.triton import tl, triton
from lightning_kernels._dropout.dropout import _dropout, check_floating, dropout, with_strides
from lightning_kernels._row_norm.kernels import _sum_partials_kernel

# Programs of the gradients' kernel that a multiprocessor holds, of 8 warps with 128 registers.
_PROGRAMS = 2


@triton.jit
def _survivors_factor(
    row, first_column, columns, threshold, scale, rate_ptr, state_ptr, seed, offset,
    DROPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Return 0 or the survivors' scale for a tile: the mask of ``dropout`` at the same places."""
    factor = 1.0
    if DROPS:
        threshold, scale = load_rate(rate_ptr, threshold, scale)
        first = row * columns + first_column  # the one row of a flat tensor is row 0
        word = random_rows(state_ptr, seed, offset, first, COLUMNS, ALIGNMENT % 4 == 0 or ROWS == 1)
        factor = tl.where(word < threshold, 0.0, scale)
    return factor


@triton.jit(do_not_specialize=["threshold", "seed", "offset"])
def _dropout_activation_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    rows,
    columns,
    parameter,
    threshold: tl.uint32,
    scale,
    rate_ptr,
    state_ptr,
    seed: tl.uint64,
    offset: tl.uint64,
    ACTIVATION: tl.constexpr,
    DROPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Store the activation of ``x + bias``, times what the mask says."""
    columns = columns // ALIGNMENT * ALIGNMENT  # tells the compiler what it is a multiple of
    column_tiles = tl.cdiv(columns, COLUMNS)
    column_tile = tl.program_id(0) % column_tiles
    row, column, in_bounds, place = place_of_tile(
        tl.program_id(0) // column_tiles, column_tile, rows, columns, ROWS, COLUMNS
    )
    z = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    factor = _survivors_factor(
        row, column_tile * tl.full((), COLUMNS, tl.int64), columns, threshold, scale, rate_ptr,
        state_ptr, seed, offset, DROPS, ROWS, COLUMNS, ALIGNMENT,
    )  # fmt: skip
    y = activate(z, parameter, ACTIVATION) * factor
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit(do_not_specialize=["threshold", "seed", "offset"])
def _dropout_activation_backward_kernel(
    grad_ptr,
    x_ptr,
    bias_ptr,
    grad_x_ptr,
    partial_ptr,
    rows,
    columns,
    slabs,
    parameter,
    threshold: tl.uint32,
    scale,
    rate_ptr,
    state_ptr,
    seed: tl.uint64,
    offset: tl.uint64,
    ACTIVATION: tl.constexpr,
    DROPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Store the gradient of x in a slab of columns, and a share of its sums over the rows."""
    columns = columns // ALIGNMENT * ALIGNMENT
    slab = tl.program_id(0) % slabs
    split = tl.program_id(0) // slabs
    splits = tl.num_programs(0) // slabs
    column = slab * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for index in range(split, tl.cdiv(rows, ROWS), splits):
        row, _, in_bounds, place = place_of_tile(index, slab, rows, columns, ROWS, COLUMNS)
        grad = tl.load(grad_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
        z = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
        grad *= _survivors_factor(
            row, slab * tl.full((), COLUMNS, tl.int64), columns, threshold, scale, rate_ptr,
            state_ptr, seed, offset, DROPS, ROWS, COLUMNS, ALIGNMENT,
        )  # fmt: skip
        grad = activation_gradient(grad, z + bias, parameter, ACTIVATION)
        if partial_ptr is not None:
            total += tl.where(in_bounds, grad, 0.0)
        if grad_x_ptr is not None:
            tl.store(grad_x_ptr + place, grad.to(grad_x_ptr.dtype.element_ty), mask=in_bounds)
    if partial_ptr is not None:
        sums = tl.sum(total, axis=0, keep_dims=True)
        tl.store(partial_ptr + split * columns + column, sums, mask=column < columns)


def _matrix(y: Tensor, bias: Tensor | None) -> tuple[int, int]:
    """Return the rows and columns that the kernels see in ``y``, dense: one row without a bias."""
    columns = y.numel() if bias is None else y.shape[-1]
    return y.numel() // columns, columns


def _forward(
    x: Tensor, bias: Tensor | None, activation: str | None, parameter: float, drops: bool, p: float,
    rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
) -> Tensor:  # fmt: skip
    y = _fake(x, bias)
    rows, columns = _matrix(y, bias)
    tile = tile_of(rows, columns)
    launch(
        _dropout_activation_kernel,
        (cdiv(rows, tile["ROWS"]) * cdiv(columns, tile["COLUMNS"]),), x.device,
        with_strides(x, y.stride()), None if bias is None else bias.contiguous(), y, rows, columns,
        parameter, threshold_of(p), survivors_scale(p), rate, state, seed, offset,
        ACTIVATION=activation, DROPS=drops, **tile,
    )  # fmt: skip
    return y


def _fake(x: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
    """Allocate the output: with the strides of ``x`` if it is dense and its rows are."""
    y = torch.empty_like(x)
    if bias is None or y.stride(-1) == 1:
        return y
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _forward_of_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, activation: str | None, parameter: float,
    drops: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of the bias, an empty tensor for what is not needed."""
    gradients = _fake_of_backward(
        grad, x, bias, activation, parameter, drops, p, rate, state, seed, offset, needs
    )
    rows, columns = _matrix(grad, bias)
    tile = tile_of(rows, columns, num_warps=8)
    slabs, splits = cdiv(columns, tile["COLUMNS"]), cdiv(rows, tile["ROWS"])
    partial = None
    if needs[1]:
        splits = max(1, min(splits, _PROGRAMS * multiprocessor_count(x.device) // slabs))
        partial = x.new_empty((splits, columns), dtype=torch.float32)
        tile = {**tile, "maxnreg": 128}  # no fewer, and nothing is spilled
    launch(
        _dropout_activation_backward_kernel, (slabs * splits,), x.device,
        grad, with_strides(x, grad.stride()), None if bias is None else bias.contiguous(),
        gradients[0] if needs[0] else None, partial, rows, columns, slabs, parameter,
        threshold_of(p), survivors_scale(p), rate, state, seed, offset,
        ACTIVATION=activation, DROPS=drops, **tile,
    )  # fmt: skip
    if needs[1]:
        launch(
            _sum_partials_kernel, (cdiv(columns, 16), 1), x.device,
            partial, None, gradients[1], None, splits, columns, ROWS=128, COLUMNS=16, num_warps=4,
        )  # fmt: skip
    return gradients


def _fake_of_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, activation: str | None, parameter: float,
    drops: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(grad) if needs[0] else x.new_empty(0)
    grad_bias = (
        torch.empty_like(bias, memory_format=torch.contiguous_format)
        if needs[1] and bias is not None
        else x.new_empty(0)
    )
    return grad_x, grad_bias


_dropout_activation_backward = Operator(
    "dropout_activation_backward",
    "(Tensor grad, Tensor x, Tensor? bias, str? activation, float parameter, bool drops, float p,"
    " Tensor? rate, Tensor? state, int seed, int offset, bool[2] needs) -> (Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, *ctx.options, rate, state, ctx.seed, ctx.offset = inputs
    ctx.strides = output.stride()
    ctx.save_for_backward(x, bias, rate, state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, rate, state = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    grad = with_strides(grad, ctx.strides)  # the mask belongs to places in memory
    stream = rate, state, ctx.seed, ctx.offset
    if torch.is_grad_enabled():  # create_graph=True: in terms that autograd can follow
        return *_differentiable_backward(grad, x, bias, needs, *ctx.options, *stream), *(None,) * 8
    gradients = _dropout_activation_backward(grad, x, bias, *ctx.options, *stream, needs)
    results = (gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
    return *results, *(None,) * 8


def _differentiable_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, needs: list[bool], activation: str | None,
    parameter: float, drops: bool, p: float, rate: Tensor | None, *stream: Any,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the same gradients through torch's functions, for higher derivatives."""
    if drops:
        grad = _dropout(grad, p, rate, False, True, *stream)
    # Views, so that a path between the two further back does not count here.
    x = x.view_as(x)
    bias = None if bias is None else bias.view_as(bias)
    y = _activated(x.float(), None if bias is None else bias.float(), activation, parameter)
    inputs = zip((x, bias), needs, strict=True)
    wanted = [tensor for tensor, need in inputs if need and tensor is not None]
    gradients = iter(torch.autograd.grad(y, wanted, grad.float(), create_graph=True))
    return tuple(next(gradients) if need else None for need in needs)


_dropout_activation = Operator(
    "dropout_activation",
    "(Tensor x, Tensor? bias, str? activation, float parameter, bool drops, float p, Tensor? rate,"
    " Tensor? state, int seed, int offset) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def dropout_activation(
    x: Tensor,
    activation: str | None,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    activation_parameter: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    r"""Add ``bias``, activate and drop: the middle of a transformer's feed-forward, in one pass.

    .. math:: y_i = a(x_i + b_i) \, m_i / (1 - p), \quad m_i \sim \text{Bernoulli}(1 - p)

    computed in float32, where in evaluation :math:`m_i / (1 - p)` is 1. Equal to
    ``dropout(activation(x + bias))`` in distribution. The mask is that of
    :func:`lightning_kernels.dropout`, a function of the element's place in memory, so the backward
    pass computes it again, with the activation's derivative: nothing is kept but ``x`` and
    ``bias``. The gradient of ``bias`` is summed in the same pass, in float32 in a fixed order.
    Where the kernels do not run (see :func:`lightning_kernels.route`) this is a composition of
    torch's own functions. Under autocast, too, the result has the type of ``x``.

    Args:
        x: ``(*, C)``, floating point.
        activation: ``None``, ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"silu"`` or
            ``"gelu"`` (exact).
        p: Probability of zeroing an element, or a tensor that holds it: see
            :func:`lightning_kernels.dropout`.
        training: When false, nothing is dropped; the rest is computed all the same.
        activation_parameter: Slope of leaky_relu (by default 0.01) or alpha of elu (1.0).
        bias: Shape ``(C,)``, in ``x``'s type or float32.

    Returns:
        Tensor with the shape and dtype of ``x``, and its strides if its elements fill a stretch of
        memory and, with a bias, the last dimension is the innermost; contiguous otherwise. As in
        torch, nan and infinity are nan where dropped.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]`` or nan; if the activation is none that there can
            be.
        RuntimeError: If ``x`` is not floating point; if the bias does not go with it; if ``p`` is
            another tensor than it may be.

    References:
        Hendrycks and Gimpel, 2016, "Gaussian error linear units", arXiv:1606.08415; Vaswani et al.,
        2017, "Attention is all you need", arXiv:1706.03762 (the feed-forward).
    """
    parameter = resolve_parameter(activation, activation_parameter)
    p, rate = resolve_rate("dropout_activation", p, x)
    check_floating("dropout_activation", x)
    if bias is not None:
        _check_bias(x, bias)
    if not training:
        p, rate = 0.0, None
    drops = p != 0.0 or rate is not None
    if runs_triton(x):
        stream = reserve(x) if drops else (None, 0, 0)
        return _dropout_activation(x, bias, activation, parameter, drops, p, rate, *stream)
    y = _activated(x, bias, activation, parameter)
    if rate is not None:
        y = dropout(y, rate)
    elif drops:
        y = torch.nn.functional.dropout(y, p)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _activated(x: Tensor, bias: Tensor | None, activation: str | None, parameter: float) -> Tensor:
    """Compose bias and activation of torch's functions."""
    if bias is not None:
        return aten_activate(x + bias, activation, parameter)
    return torch.relu(x) if activation == "relu" else aten_activate(x, activation, parameter)


def _check_bias(x: Tensor, bias: Tensor) -> None:
    """Raise for a bias that does not go with ``x``."""
    if x.dim() == 0 or bias.shape != x.shape[-1:] or bias.device != x.device:
        raise RuntimeError(
            f"dropout_activation expects bias of shape {list(x.shape[-1:])} (the last dimension of"
            f" x) on {x.device}, but got {list(bias.shape)} on {bias.device}"
        )
    if bias.dtype not in (x.dtype, torch.float32):
        raise RuntimeError(
            f"dropout_activation expects bias of {x.dtype} (x's) or torch.float32, but got"
            f" {bias.dtype}"
        )
