"""The kernels of dropout, stochastic depth, layer scale, addition of the residual and norm.

A program holds its rows in registers. The random words of a call are one stream: first one word per
sample, for stochastic depth, then one word per element, row after row, for dropout. The number of
words of the samples, and of each row, is rounded up to a multiple of four. So the masks are
functions of seed, offset, row and column alone.
"""

from lightning_kernels._core.random import random_word_at, words_of_groups
from lightning_kernels._core.rate import load_rate
from lightning_kernels._core.tiles import scaled, shifted
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _branch_factor(
    row, column, in_columns, layer_scale_ptr, num_rows, size, rows_per_sample,
    threshold, scale, rate_ptr, path_threshold, path_scale, path_rate_ptr, state_ptr, seed, offset,
    DROPS: tl.constexpr, DROPS_PATHS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Return the factors of the branch.

    Returns:
        The factor of dropout and stochastic depth. This factor times the layer scale. The mask of
        rows that stochastic depth keeps.
    """
    kept = row >= 0
    factor = tl.full((1, 1), 1.0, tl.float32)
    if DROPS_PATHS:
        path_threshold, path_scale = load_rate(path_rate_ptr, path_threshold, path_scale)
        word = random_word_at(state_ptr, seed, offset, row // rows_per_sample)
        kept = word >= path_threshold
        factor = tl.where(kept, path_scale, 0.0)
    if DROPS:
        threshold, scale = load_rate(rate_ptr, threshold, scale)
        first = tl.cdiv(num_rows // rows_per_sample, 4) + row * tl.cdiv(size, 4)
        group = first + tl.arange(0, BLOCK_SIZE // 4)[None, :]
        word = words_of_groups(state_ptr, seed, offset, group)
        factor = tl.where(word < threshold, 0.0, scale) * factor
    product = scaled(factor, layer_scale_ptr, column, in_columns)
    if DROPS_PATHS:
        product = tl.where(kept, product, 0.0)  # 0 times an infinite layer scale would be nan
    return factor, product, kept


@triton.jit(do_not_specialize=["threshold", "path_threshold", "seed", "offset"])
def _add_norm_forward_kernel(
    x_ptr, residual_ptr, layer_scale_ptr, weight_ptr, bias_ptr, y_ptr, z_ptr, statistics_ptr,
    num_rows, size, rows_per_sample, eps, threshold: tl.uint32, scale, rate_ptr,
    path_threshold: tl.uint32, path_scale, path_rate_ptr, state_ptr, seed: tl.uint64,
    offset: tl.uint64, DROPS: tl.constexpr, DROPS_PATHS: tl.constexpr, CENTRED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Store the sum ``z`` and the normalised sum ``y`` of ``ROWS`` rows, and their statistics.

    The norm is that of ``z`` after rounding to its dtype, because the backward pass reads this
    ``z``.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    in_rows, in_columns = row < num_rows, column < size
    in_bounds = in_rows & in_columns
    place = row * size + column
    _, factor, kept = _branch_factor(
        row, column, in_columns, layer_scale_ptr, num_rows, size, rows_per_sample,
        threshold, scale, rate_ptr, path_threshold, path_scale, path_rate_ptr,
        state_ptr, seed, offset, DROPS, DROPS_PATHS, BLOCK_SIZE,
    )  # fmt: skip
    read = in_bounds
    if residual_ptr is not None:
        read = in_bounds & kept  # without a residual all rows are read, so dropped nan stays nan
    z = tl.load(x_ptr + place, mask=read, other=0.0).to(tl.float32) * factor
    if residual_ptr is not None:
        z += tl.load(residual_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    stored = z.to(z_ptr.dtype.element_ty)
    tl.store(z_ptr + place, stored, mask=in_bounds)
    # Out of bounds z may be nan: 0 times an infinite factor.
    z = tl.where(in_columns, stored.to(tl.float32), 0.0)
    if CENTRED:
        mean = tl.sum(z, axis=1, keep_dims=True) / size
        tl.store(statistics_ptr + row, mean, mask=in_rows)
        statistics_ptr += num_rows
        z = tl.where(in_columns, z - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(z * z, axis=1, keep_dims=True) / size + eps)
    tl.store(statistics_ptr + row, rstd, mask=in_rows)
    y = shifted(scaled(z * rstd, weight_ptr, column, in_columns), bias_ptr, column, in_columns)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit
def _load_normalised(
    z_ptr, statistics_ptr, place, row, in_bounds, in_rows, num_rows, CENTRED: tl.constexpr
):
    """Return the normalised sum, which is 0 out of bounds, and 1/sqrt(...) of each row."""
    z = tl.load(z_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    rstd_ptr = statistics_ptr
    if CENTRED:
        z -= tl.load(statistics_ptr + row, mask=in_rows, other=0.0)
        rstd_ptr += num_rows
    rstd = tl.load(rstd_ptr + row, mask=in_rows, other=0.0)
    return tl.where(in_bounds, z * rstd, 0.0), rstd


@triton.jit
def _norm_gradient(
    grad_y, normalised, rstd, weight_ptr, column, in_columns, size, CENTRED: tl.constexpr
):
    """Return the gradient of the sum ``z``, given the gradient of the normalised sum ``y``."""
    grad_y = scaled(grad_y, weight_ptr, column, in_columns)
    projection = tl.sum(grad_y * normalised, axis=1, keep_dims=True) / size
    grad = grad_y - normalised * projection
    if CENTRED:
        grad -= tl.sum(grad_y, axis=1, keep_dims=True) / size
    return grad * rstd


@triton.jit(do_not_specialize=["threshold", "path_threshold", "seed", "offset"])
def _add_norm_backward_kernel(
    grad_y_ptr, grad_z_ptr, x_ptr, z_ptr, layer_scale_ptr, weight_ptr, statistics_ptr, grad_x_ptr,
    grad_residual_ptr, partial_scale_ptr, partial_weight_ptr, partial_bias_ptr, num_rows, size,
    rows_per_sample, threshold: tl.uint32, scale, rate_ptr, path_threshold: tl.uint32, path_scale,
    path_rate_ptr, state_ptr, seed: tl.uint64, offset: tl.uint64, DROPS: tl.constexpr,
    DROPS_PATHS: tl.constexpr, SKIPS: tl.constexpr, CENTRED: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Store the gradients of x and residual, and partial sums of the parameters' gradients.

    Program ``i`` takes every ``num_programs``-th tile of rows, from tile ``i`` on. It reads each
    tensor once, and stores its partial sums as one float32 row per parameter. With ``SKIPS`` it
    does not read ``x`` in dropped rows.
    """
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    in_columns = column < size
    sum_scale = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
    sum_weight = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
    sum_bias = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
    for index in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        row = index * tl.full((), ROWS, tl.int64) + tl.arange(0, ROWS)[:, None]
        in_rows = row < num_rows
        in_bounds = in_rows & in_columns
        place = row * size + column
        grad = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
        if grad_y_ptr is not None:
            grad_y = tl.load(grad_y_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
            normalised, rstd = _load_normalised(
                z_ptr, statistics_ptr, place, row, in_bounds, in_rows, num_rows, CENTRED
            )
            if partial_weight_ptr is not None:
                sum_weight += grad_y * normalised
            if partial_bias_ptr is not None:
                sum_bias += grad_y
            grad = _norm_gradient(
                grad_y, normalised, rstd, weight_ptr, column, in_columns, size, CENTRED
            )
        if grad_z_ptr is not None:
            grad += tl.load(grad_z_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
        if grad_residual_ptr is not None:
            grad_residual = grad.to(grad_residual_ptr.dtype.element_ty)
            tl.store(grad_residual_ptr + place, grad_residual, mask=in_bounds)
        if grad_x_ptr is not None or partial_scale_ptr is not None:
            unscaled, factor, kept = _branch_factor(
                row, column, in_columns, layer_scale_ptr, num_rows, size, rows_per_sample,
                threshold, scale, rate_ptr, path_threshold, path_scale, path_rate_ptr,
                state_ptr, seed, offset, DROPS, DROPS_PATHS, BLOCK_SIZE,
            )  # fmt: skip
            read = in_bounds
            if SKIPS:
                grad = tl.where(kept, grad, 0.0)
                read = in_bounds & kept
            if partial_scale_ptr is not None:
                x = tl.load(x_ptr + place, mask=read, other=0.0).to(tl.float32)
                sum_scale += tl.where(in_bounds, grad * unscaled * x, 0.0)
            if grad_x_ptr is not None:
                grad_x = (grad * factor).to(grad_x_ptr.dtype.element_ty)
                tl.store(grad_x_ptr + place, grad_x, mask=in_bounds)
    column = tl.arange(0, BLOCK_SIZE)
    partial = tl.program_id(0).to(tl.int64) * size + column
    if partial_scale_ptr is not None:
        tl.store(partial_scale_ptr + partial, tl.sum(sum_scale, axis=0), mask=column < size)
    if partial_weight_ptr is not None:
        tl.store(partial_weight_ptr + partial, tl.sum(sum_weight, axis=0), mask=column < size)
    if partial_bias_ptr is not None:
        tl.store(partial_bias_ptr + partial, tl.sum(sum_bias, axis=0), mask=column < size)
