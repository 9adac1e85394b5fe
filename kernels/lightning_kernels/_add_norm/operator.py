"""Dropout, stochastic depth, layer scale, addition of the residual and norm as one operator.

It takes one pass forward and one pass backward.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._add_norm.kernels import (
    _add_norm_backward_kernel,
    _add_norm_forward_kernel,
)
from lightning_kernels._core.gradients import empty_gradients, only_needed
from lightning_kernels._core.launch import cdiv, launch, multiprocessor_count
from lightning_kernels._core.layout import contiguous
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.partial_sums import sum_partials
from lightning_kernels._core.rate import survivors_scale, threshold_of
from lightning_kernels._core.row_tiles import resident, stages_of, tile_of_rows
from lightning_kernels._dropout import dropout_operator
from lightning_kernels._row_norm import row_norm_gradients

# Warps of the backward kernel that a multiprocessor holds, almost without spills, by the number of
# pieces of a row.
_WARPS = {1: 16, 2: 16, 3: 12, 5: 16, 7: 8}


def _rates(
    p: float, rate: Tensor | None, drop_path: float, path_rate: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, bool]]:
    """Return the kernels' arguments for the two rates, and the constants that depend on them."""
    arguments = (
        threshold_of(p), survivors_scale(p), rate,
        threshold_of(drop_path), survivors_scale(drop_path), path_rate,
    )  # fmt: skip
    drops, drops_paths = p != 0.0 or rate is not None, drop_path != 0.0 or path_rate is not None
    return arguments, {"DROPS": drops, "DROPS_PATHS": drops_paths}


def _tile_of(num_rows: int, size: int, elements: int, most: int) -> dict[str, int]:
    # Tiles are at least four elements wide, because a Philox call returns four words.
    tile = tile_of_rows(num_rows, max(size, 4), elements, most)
    return {**tile, "FULL": tile["PIECES"] * tile["BLOCK_SIZE"] == size}


def _forward(
    x: Tensor, residual: Tensor | None, layer_scale: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, size: int, eps: float, centred: bool, p: float, rate: Tensor | None,
    drop_path: float, path_rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, z, statistics = _fake(x, residual, layer_scale, weight, bias, size, eps, centred)
    tensors = contiguous(residual, layer_scale, weight, bias)
    rates, drops = _rates(p, rate, drop_path, path_rate)
    num_rows = x.numel() // size
    tile = _tile_of(num_rows, size, elements=24, most=4)
    launch(
        _add_norm_forward_kernel, (cdiv(num_rows, tile["ROWS"]),), x.device,
        x.contiguous(), *tensors, y, z, statistics, num_rows, size, num_rows // _samples(x, size),
        eps, *rates, state, seed, offset, CENTRED=centred, **drops, **tile,
    )  # fmt: skip
    return y, z, statistics


def _samples(x: Tensor, size: int) -> int:
    """Return the number of samples of ``x``. A tensor of one row is one sample."""
    return 1 if x.numel() == size else x.shape[0]


def _fake(
    x: Tensor, residual: Tensor | None, layer_scale: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, size: int, eps: float, centred: bool, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Allocate ``y``, ``z`` and the statistics of rows: means if centred, then 1/sqrt(...)."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    dtype = x.dtype if residual is None else residual.dtype
    z = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return y, z, x.new_empty((1 + centred, x.numel() // size), dtype=torch.float32)


def _forward_of_backward(
    z: Tensor, grad_y: Tensor | None, grad_z: Tensor | None, x: Tensor | None,
    layer_scale: Tensor | None, weight: Tensor | None, bias: Tensor | None, statistics: Tensor,
    skips: bool, dtype: torch.dtype, p: float, rate: Tensor | None, drop_path: float,
    path_rate: Tensor | None, state: Tensor | None, seed: int, offset: int, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, residual, layer scale, weight and bias.

    A gradient is an empty tensor where ``needs`` is False.
    """
    gradients = _fake_of_backward(
        z, grad_y, grad_z, x, layer_scale, weight, bias, statistics, skips, dtype, p, rate,
        drop_path, path_rate, state, seed, offset, needs,
    )  # fmt: skip
    needed = only_needed(gradients, needs)
    centred, num_rows = statistics.shape[0] == 2, statistics.shape[1]
    size = z.numel() // num_rows
    # The sums for the layer scale take registers from the elements.
    tile = _tile_of(num_rows, size, elements=8 if needs[2] else 16, most=2)
    read = (z if grad_y is not None else None, grad_y, grad_z, x if needs[2] else None)
    programs, limit = resident(16 if needs[2] else _WARPS[tile["PIECES"]], tile)
    num_programs = min(cdiv(num_rows, tile["ROWS"]), multiprocessor_count(z.device) * programs)
    partials = [
        None if gradient is None else z.new_empty((num_programs, size), dtype=torch.float32)
        for gradient in needed[2:]
    ]
    tensors = contiguous(grad_y, grad_z, x, z, layer_scale, weight)
    rates, drops = _rates(p, rate, drop_path, path_rate)
    launch(
        _add_norm_backward_kernel, (num_programs,), z.device,
        *tensors, statistics, *needed[:2], *partials, num_rows, size,
        num_rows // _samples(z, size), *rates, state, seed, offset,
        SKIPS=skips, CENTRED=centred, **drops, STAGES=stages_of(tile, *read), **tile, **limit,
    )  # fmt: skip
    sum_partials(partials[:1], needed[2:3])
    sum_partials(partials[1:], needed[3:])
    return gradients


def _fake_of_backward(
    z: Tensor, grad_y: Tensor | None, grad_z: Tensor | None, x: Tensor | None,
    layer_scale: Tensor | None, weight: Tensor | None, bias: Tensor | None, statistics: Tensor,
    skips: bool, dtype: torch.dtype, p: float, rate: Tensor | None, drop_path: float,
    path_rate: Tensor | None, state: Tensor | None, seed: int, offset: int, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(z, dtype=dtype) if needs[0] else z.new_empty(0)
    grad_residual = torch.empty_like(z) if needs[1] else z.new_empty(0)
    parameters = layer_scale, weight, bias
    grad_scale, grad_weight, grad_bias = empty_gradients(z, parameters, needs[2:])
    return grad_x, grad_residual, grad_scale, grad_weight, grad_bias


_add_norm_backward = Operator(
    "add_norm_backward",
    "(Tensor z, Tensor? grad_y, Tensor? grad_z, Tensor? x, Tensor? layer_scale, Tensor? weight,"
    " Tensor? bias, Tensor statistics, bool skips, ScalarType dtype, float p, Tensor? rate,"
    " float drop_path, Tensor? path_rate, Tensor? state, int seed, int offset, bool[5] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, layer_scale, weight, bias, ctx.size, ctx.eps, ctx.centred, *drops = inputs
    ctx.p, rate, ctx.drop_path, path_rate, state, ctx.seed, ctx.offset = drops
    ctx.skips, ctx.dtype = residual is not None, x.dtype
    _, z, statistics = output
    x = x if ctx.needs_input_grad[2] else None
    ctx.save_for_backward(z, x, layer_scale, weight, bias, statistics, rate, path_rate, state)
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_z: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients. No gradient is written twice.

    Without drops and layer scale, and in one dtype, the gradients of x and residual are equal, so
    one tensor serves both. Without ``grad_y`` the gradient of the residual is ``grad_z`` itself.
    """
    if grad_y is None and grad_z is None:
        return (None,) * 15
    z, *saved, statistics, rate, path_rate, state = ctx.saved_tensors
    drops = ctx.p, rate, ctx.drop_path, path_rate, state, ctx.seed, ctx.offset
    if torch.is_grad_enabled():  # the backward pass runs with create_graph=True
        return *_differentiable_backward(ctx, grad_y, grad_z, z, saved, drops), *(None,) * 10
    needs = list(ctx.needs_input_grad[:5])
    alike = saved[1] is None and ctx.dtype == z.dtype and not any(_rates(*drops[:4])[1].values())
    if grad_y is None:
        written = [needs[0] and not alike, False, needs[2], False, False]
    else:
        written = [needs[0], needs[1] and not (alike and needs[0]), *needs[2:]]
    results: list[Tensor | None] = [None] * 5
    if any(written):
        gradients = _add_norm_backward(
            z, grad_y, grad_z, *saved, statistics, ctx.skips, ctx.dtype, *drops, written
        )
        results = only_needed(gradients, written)
    if needs[0] and not written[0]:
        results[0] = grad_z
    if needs[1] and not written[1]:
        results[1] = grad_z if grad_y is None else results[0]
    return *results, *(None,) * 10


def _differentiable_backward(
    ctx: Any, grad_y: Tensor | None, grad_z: Tensor | None, z: Tensor, saved: list[Tensor | None],
    drops: tuple[Any, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients by torch's functions, which can be differentiated again."""
    x, layer_scale, weight, bias = saved
    grad_weight = grad_bias = grad_scale = None
    grad = grad_z
    if grad_y is not None:
        grad, grad_weight, grad_bias = row_norm_gradients(
            grad_y, z, ctx.size, weight, bias, ctx.eps, ctx.centred
        )
        assert grad is not None
        grad = grad if grad_z is None else grad + grad_z
    assert grad is not None
    factor, of_rows = _masks(z, ctx.size, *drops)
    rows = grad.reshape(-1, ctx.size).float()
    if x is not None:
        x = x.reshape(-1, ctx.size).float()
    if of_rows is not None and ctx.skips:  # like the kernels, ignore nan in dropped branches
        rows = torch.where(of_rows != 0, rows, 0.0)
        x = None if x is None else torch.where(of_rows != 0, x, 0.0)
    rows = rows * factor if of_rows is None else rows * factor * of_rows
    if layer_scale is not None:
        if x is not None:
            grad_scale = (rows * x).sum(0).reshape(layer_scale.shape).to(layer_scale.dtype)
        rows = rows * layer_scale.reshape(-1).float()
    grad_x = rows.reshape(z.shape).to(ctx.dtype)
    return grad_x, grad if ctx.skips else None, grad_scale, grad_weight, grad_bias


def _masks(
    z: Tensor, size: int, p: float, rate: Tensor | None, drop_path: float,
    path_rate: Tensor | None, *stream: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Draw the factors of dropout, per element, and of stochastic depth, per row, again.

    The dropout operator, applied to ones with the same stream, returns these factors.
    """
    samples, num_rows = _samples(z, size), z.numel() // size
    first, padded = 4 * cdiv(samples, 4), 4 * cdiv(size, 4)
    drops = _rates(p, rate, drop_path, path_rate)[1]
    factor, of_rows = z.new_ones((1, 1), dtype=torch.float32), None
    if drops["DROPS"]:
        ones = z.new_ones(first + num_rows * padded, dtype=torch.float32)
        words = dropout_operator(ones, p, rate, False, True, *stream)
        factor = words[first:].view(num_rows, padded)[:, :size]
    if drops["DROPS_PATHS"]:
        ones = z.new_ones(first, dtype=torch.float32)
        words = dropout_operator(ones, drop_path, path_rate, False, True, *stream)
        of_rows = words[:samples].repeat_interleave(num_rows // samples)[:, None]
    return factor, of_rows


add_norm_operator = Operator(
    "add_norm",
    "(Tensor x, Tensor? residual, Tensor? layer_scale, Tensor? weight, Tensor? bias, SymInt size,"
    " float eps, bool centred, float p, Tensor? rate, float drop_path, Tensor? path_rate,"
    " Tensor? state, int seed, int offset) -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
