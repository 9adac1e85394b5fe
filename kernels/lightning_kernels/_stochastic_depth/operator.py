"""Stochastic depth with layer scale and residual as an operator: one pass forward, one backward."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.launch import cdiv, launch, multiprocessor_count
from lightning_kernels._core.layout import with_strides
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.partial_sums import sum_partials
from lightning_kernels._core.rate import survivors_scale, threshold_of
from lightning_kernels._core.row_tiles import resident
from lightning_kernels._core.tiles import tile_of
from lightning_kernels._stochastic_depth.kernels import (
    _stochastic_depth_backward_kernel,
    _stochastic_depth_kernel,
)

_WARPS = 16  # of the backward kernel that a multiprocessor holds without spills


def _matrix(y: Tensor, row_mode: bool, dim: int) -> tuple[tuple[int, int, int, int], bool]:
    """Return the sizes of the matrix that the kernels use.

    Args:
        y: The output. It is dense, and its samples follow each other in memory.
        row_mode: Whether each sample (index of the first dimension) has its own draw.
        dim: The dimension of the channels, or -1 if the layer scale is one number.

    Returns:
        The sizes: rows, columns, rows per sample, channels. Whether the channels are the columns;
        otherwise row ``r`` belongs to channel ``r % channels``.
    """
    samples = y.shape[0] if row_mode else 1
    numel = y.numel()
    if dim < 0:
        return (samples, numel // samples, 1, 1), False
    channels, columns = y.shape[dim], y.stride(dim)
    channels_last = columns == 1 and (dim > 0 or not row_mode)
    if channels_last:
        columns = channels
    rows = numel // columns
    return (rows, columns, rows // samples, channels), channels_last


def _forward(
    x: Tensor, residual: Tensor | None, layer_scale: Tensor | None, dim: int, row_mode: bool,
    drops: bool, skips: bool, p: float, rate: Tensor | None, dtype: torch.dtype,
    state: Tensor | None, seed: int, offset: int,
) -> Tensor:  # fmt: skip
    y = _fake(x, residual, layer_scale, dim, row_mode, drops, skips, p, rate, dtype)
    x = with_strides(x, y.stride())
    residual = None if residual is None else with_strides(residual, y.stride())
    layer_scale = None if layer_scale is None else layer_scale.contiguous()
    sizes, channels_last = _matrix(y, row_mode, dim)
    tile = tile_of(*sizes[:2])
    launch(
        _stochastic_depth_kernel,
        (cdiv(sizes[0], tile["ROWS"]) * cdiv(sizes[1], tile["COLUMNS"]),), x.device,
        x, residual, layer_scale, y, *sizes, threshold_of(p), survivors_scale(p), rate,
        state, seed, offset, DROPS=drops, SKIPS=skips, CHANNELS_LAST=channels_last, **tile,
    )  # fmt: skip
    return y


def _fake(
    x: Tensor, residual: Tensor | None, layer_scale: Tensor | None, dim: int, row_mode: bool,
    drops: bool, skips: bool, p: float, rate: Tensor | None, dtype: torch.dtype, *_: Any,
) -> Tensor:  # fmt: skip
    """Allocate the output, with the strides of ``x`` if ``x`` is dense.

    In row mode the samples must follow each other in memory. If they do not in ``x``, the output is
    contiguous.
    """
    y = torch.empty_like(x, dtype=dtype)
    if row_mode and x.shape[0] > 1 and y.stride(0) * x.shape[0] != y.numel():
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return y


def _forward_of_backward(
    grad: Tensor, x: Tensor, layer_scale: Tensor, dim: int, row_mode: bool, drops: bool,
    skips: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs_x: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of the layer scale. That of x is empty without ``needs_x``."""
    grad_x, grad_layer_scale = _fake_of_backward(
        grad, x, layer_scale, dim, row_mode, drops, skips, p, rate, state, seed, offset, needs_x
    )
    x = with_strides(x, grad.stride())
    sizes, channels_last = _matrix(grad, row_mode, dim)
    rows, columns, rows_per_sample, channels = sizes
    tile = tile_of(rows if channels_last else channels, columns, num_warps=8)
    if tile["ALIGNMENT"] == 1:  # each element has an address of its own, which takes registers
        tile = {**tile, "ROWS": max(1, tile["ROWS"] // 2)}
    programs, limit = resident(_WARPS, tile)
    if channels_last:
        groups, tiles = cdiv(columns, tile["COLUMNS"]), cdiv(rows, tile["ROWS"])
    else:
        groups = cdiv(channels, tile["ROWS"])
        tiles = rows // channels * cdiv(columns, tile["COLUMNS"])
    splits = max(1, min(tiles, programs * multiprocessor_count(x.device) // groups))
    partial = x.new_empty((splits, channels), dtype=torch.float32)
    launch(
        _stochastic_depth_backward_kernel, (groups * splits,), x.device,
        grad, x, layer_scale.contiguous(), grad_x if needs_x else None, partial, *sizes, groups,
        threshold_of(p), survivors_scale(p), rate, state, seed, offset,
        DROPS=drops, SKIPS=skips, CHANNELS_LAST=channels_last,
        ONE_SAMPLE=not channels_last and rows_per_sample % channels == 0, **tile, **limit,
    )  # fmt: skip
    sum_partials((partial,), (grad_layer_scale,))
    return grad_x, grad_layer_scale


def _fake_of_backward(
    grad: Tensor, x: Tensor, layer_scale: Tensor, dim: int, row_mode: bool, drops: bool,
    skips: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs_x: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(grad, dtype=x.dtype) if needs_x else x.new_empty(0)
    return grad_x, torch.empty_like(layer_scale, memory_format=torch.contiguous_format)


_stochastic_depth_backward = Operator(
    "stochastic_depth_backward",
    "(Tensor grad, Tensor x, Tensor layer_scale, int dim, bool row_mode, bool drops, bool skips,"
    " float p, Tensor? rate, Tensor? state, int seed, int offset, bool needs_x)"
    " -> (Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, layer_scale, *ctx.options, rate, _, state, ctx.seed, ctx.offset = inputs
    ctx.dtype, ctx.strides = x.dtype, output.stride()
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, layer_scale, rate, state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of x (``grad`` times the factors of the branch), residual and scale.

    The gradient of the residual is ``grad`` itself.
    """
    x, layer_scale, rate, state = ctx.saved_tensors
    needs_x, needs_residual, needs_layer_scale = ctx.needs_input_grad[:3]
    place = state, ctx.seed, ctx.offset
    dense = with_strides(grad, ctx.strides)
    grad_x = grad_layer_scale = None
    if needs_layer_scale and not torch.is_grad_enabled():
        grad_x, grad_layer_scale = _stochastic_depth_backward(
            dense, x, layer_scale, *ctx.options, rate, *place, needs_x
        )
        grad_x = grad_x if needs_x else None
    else:
        if needs_x:
            grad_x = stochastic_depth_operator(
                dense, None, layer_scale, *ctx.options, rate, ctx.dtype, *place
            )
        if needs_layer_scale:  # create_graph=True: operators that can be differentiated again
            _, *options = ctx.options
            branch = stochastic_depth_operator(
                x, None, None, -1, *options, rate, torch.float32, *place
            )
            products = (grad.float() * branch).sum_to_size(layer_scale.shape)
            grad_layer_scale = products.to(layer_scale.dtype)
    return grad_x, grad if needs_residual else None, grad_layer_scale, *(None,) * 10


stochastic_depth_operator = Operator(
    "stochastic_depth",
    "(Tensor x, Tensor? residual, Tensor? layer_scale, int dim, bool row_mode, bool drops,"
    " bool skips, float p, Tensor? rate, ScalarType dtype, Tensor? state, int seed, int offset)"
    " -> Tensor",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
