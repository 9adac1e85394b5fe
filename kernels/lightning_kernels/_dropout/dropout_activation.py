"""Bias, activation and dropout in one pass. The graph keeps the inputs alone."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.activation import (
    activate,
    activation_gradient,
    aten_activate,
    resolve_parameter,
)
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import runs_triton
from lightning_kernels._core.gradients import empty_gradients, only_needed, recompute_gradients
from lightning_kernels._core.launch import cdiv, launch, multiprocessor_count
from lightning_kernels._core.layout import with_strides
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.parameters import check_floating, not_a_tensor
from lightning_kernels._core.partial_sums import sum_partials
from lightning_kernels._core.random import random_rows, reserve
from lightning_kernels._core.rate import load_rate, resolve_rate, survivors_scale, threshold_of
from lightning_kernels._core.tiles import place_of_tile, tile_of
from lightning_kernels._core.triton import tl, triton
from lightning_kernels._dropout.dropout import dropout, dropout_operator

# Programs of the backward kernel per multiprocessor: of 8 warps, with 128 registers per thread.
_PROGRAMS = 2


@triton.jit
def _survivors_factor(
    row, first_column, columns, threshold, scale, rate_ptr, state_ptr, seed, offset,
    DROPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Return the dropout factors of a tile: 0, or the scale of kept elements.

    The random words are those that ``dropout`` draws for the same places in memory.
    """
    factor = 1.0
    if DROPS:
        threshold, scale = load_rate(rate_ptr, threshold, scale)
        first = row * columns + first_column
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
    """Store the activation of ``x + bias``, times the factor of dropout."""
    columns = columns // ALIGNMENT * ALIGNMENT  # unchanged: shows the compiler the alignment
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
    y = activate(z, parameter, ACTIVATION, y_ptr.dtype.element_ty) * factor
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
    """Store the gradient of x, and partial sums of the gradient of the bias.

    A slab is a range of ``COLUMNS`` columns. Several programs share the tiles of a slab.
    """
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
        dtype: tl.constexpr = grad_ptr.dtype.element_ty
        grad = activation_gradient(grad, z + bias, parameter, ACTIVATION, dtype)
        if partial_ptr is not None:
            total += tl.where(in_bounds, grad, 0.0)
        if grad_x_ptr is not None:
            tl.store(grad_x_ptr + place, grad.to(grad_x_ptr.dtype.element_ty), mask=in_bounds)
    if partial_ptr is not None:
        sums = tl.sum(total, axis=0, keep_dims=True)
        tl.store(partial_ptr + split * columns + column, sums, mask=column < columns)


def _matrix(y: Tensor, bias: Tensor | None) -> tuple[int, int]:
    """Return the numbers of rows and columns of the dense ``y``. Without a bias it is one row."""
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
    """Allocate the output: with the strides of ``x`` if ``x`` is dense, else contiguous.

    With a bias the last dimension must also be the innermost in memory.
    """
    y = torch.empty_like(x)
    if bias is None or y.stride(-1) == 1:
        return y
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _forward_of_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, activation: str | None, parameter: float,
    drops: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of the bias; empty where ``needs`` is False."""
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
        tile = {**tile, "maxnreg": 128}  # with fewer registers the kernel spills
    launch(
        _dropout_activation_backward_kernel, (slabs * splits,), x.device,
        grad, with_strides(x, grad.stride()), None if bias is None else bias.contiguous(),
        gradients[0] if needs[0] else None, partial, rows, columns, slabs, parameter,
        threshold_of(p), survivors_scale(p), rate, state, seed, offset,
        ACTIVATION=activation, DROPS=drops, **tile,
    )  # fmt: skip
    if needs[1]:
        sum_partials((partial,), (gradients[1],))
    return gradients


def _fake_of_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, activation: str | None, parameter: float,
    drops: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(grad) if needs[0] else x.new_empty(0)
    (grad_bias,) = empty_gradients(x, (bias,), needs[1:])
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
    grad = with_strides(grad, ctx.strides)  # the mask depends on the order of elements in memory
    stream = rate, state, ctx.seed, ctx.offset
    if torch.is_grad_enabled():  # the backward pass runs with create_graph=True
        return *_differentiable_backward(grad, x, bias, needs, *ctx.options, *stream), *(None,) * 8
    gradients = _dropout_activation_backward(grad, x, bias, *ctx.options, *stream, needs)
    return *only_needed(gradients, needs), *(None,) * 8


def _differentiable_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, needs: list[bool], activation: str | None,
    parameter: float, drops: bool, p: float, rate: Tensor | None, *stream: Any,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients by torch's functions, which can be differentiated again."""
    if drops:
        grad = dropout_operator(grad, p, rate, False, True, *stream)

    def activated(x: Tensor, bias: Tensor | None) -> Tensor:
        return _activated(x, bias, activation, parameter)

    return tuple(recompute_gradients(activated, grad, (x, bias), needs))


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
    r"""Add ``bias``, apply an activation and drop elements, in one pass.

    .. math:: y_i = a(x_i + b_i) \, m_i / (1 - p), \quad m_i \sim \text{Bernoulli}(1 - p)

    These operations lie between the two linear layers of a transformer's feed-forward network. The
    computation is float32. In evaluation :math:`m_i / (1 - p)` is 1. The result equals
    ``dropout(activation(x + bias))`` in distribution. The mask is that of
    :func:`lightning_kernels.dropout`, a function of the place of the element in memory, so the
    backward pass draws it again. The graph keeps ``x`` and ``bias`` alone. The backward pass is one
    pass, too, and sums the gradient of ``bias`` in float32 in a fixed order. Where the kernels do
    not run (see :func:`lightning_kernels.route`) the result is composed of torch's functions. The
    result has the dtype of ``x``, also under autocast.

    Args:
        x: Input of shape ``(*, C)``, floating point.
        activation: Activation :math:`a`: ``None``, ``"relu"``, ``"relu6"``, ``"leaky_relu"``,
            ``"elu"``, ``"selu"``, ``"silu"``, ``"hardswish"`` or ``"gelu"`` (exact, not the tanh
            approximation).
        p: Probability of zeroing an element: a number, or a tensor of one float32 on the device of
            ``x`` (see :func:`lightning_kernels.dropout`).
        training: Whether to drop. Everything else is computed in evaluation too.
        activation_parameter: Slope of leaky_relu (default 0.01) or alpha of elu (default 1.0).
        bias: Bias :math:`b` of shape ``(C,)``, in the dtype of ``x`` or float32. ``None`` adds
            nothing.

    Returns:
        Tensor of the shape and dtype of ``x``. It has the strides of ``x`` if ``x`` is dense and,
        with a bias, its last dimension is the innermost; otherwise it is contiguous. As in torch,
        dropped nan and infinity become nan.

    Raises:
        NotImplementedError: If ``x`` is not floating point.
        RuntimeError: If ``bias`` does not fit ``x``. If ``p`` is a
            tensor, but not one float32 on the device of ``x`` without gradient.
        ValueError: If ``p`` is outside ``[0, 1]`` or nan. If ``activation`` is unknown. If
            ``activation_parameter`` is given for an activation without parameter.

    Example:
        >>> from lightning_kernels import dropout_activation
        >>> x, bias = torch.randn(4, 64), torch.randn(64)
        >>> y = dropout_activation(x, "gelu", 0.1, bias=bias)
        >>> kept = y != 0
        >>> torch.allclose(y[kept], nn.functional.gelu(x + bias)[kept] / 0.9, atol=1e-6)
        True

    References:
        Hendrycks and Gimpel, 2016, "Gaussian error linear units", arXiv:1606.08415; Vaswani et al.,
        2017, "Attention is all you need", arXiv:1706.03762 (the feed-forward network).
    """
    parameter = resolve_parameter(activation, activation_parameter)
    p, rate = resolve_rate("dropout_activation", p, x)
    check_floating("dropout_activation", x)
    if bias is not None:
        _check_bias(x, bias)
    if not training:
        p, rate = 0.0, None
    drops = p != 0.0 or rate is not None
    if runs_triton(x) and pays("dropout_activation", x, activation, drops):
        stream = reserve(x) if drops else (None, 0, 0)
        return _dropout_activation(x, bias, activation, parameter, drops, p, rate, *stream)
    y = _activated(x, bias, activation, parameter)
    if rate is not None:
        y = dropout(y, rate)
    elif drops:
        y = torch.nn.functional.dropout(y, p)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _activated(x: Tensor, bias: Tensor | None, activation: str | None, parameter: float) -> Tensor:
    """Add the bias and activate by torch's functions."""
    if bias is not None:
        return aten_activate(x + bias, activation, parameter)
    return torch.relu(x) if activation == "relu" else aten_activate(x, activation, parameter)


def _check_bias(x: Tensor, bias: Tensor) -> None:
    """Raise RuntimeError if the shape, device or dtype of the bias does not fit ``x``.

    Raise TypeError if it is not a tensor.
    """
    try:
        fits = bias.shape == x.shape[-1:] and bias.device == x.device
    except AttributeError:
        raise not_a_tensor("dropout_activation", "bias", bias) from None
    if x.dim() == 0 or not fits:
        raise RuntimeError(
            f"dropout_activation expects bias of shape {list(x.shape[-1:])} (the last dimension of"
            f" x) on {x.device}, but got {list(bias.shape)} on {bias.device}"
        )
    if bias.dtype not in (x.dtype, torch.float32):
        raise RuntimeError(
            f"dropout_activation expects bias of {x.dtype} (x's) or torch.float32, but got"
            f" {bias.dtype}"
        )
