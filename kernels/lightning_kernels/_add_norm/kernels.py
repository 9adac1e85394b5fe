"""The kernels of dropout, stochastic depth, layer scale, addition of the residual and norm.

A program holds its rows in registers. The random words of a call are one stream: first one word per
sample, for stochastic depth, then one word per element, row after row, for dropout. The number of
words of the samples, and of each row, is rounded up to a multiple of four. So the masks are
functions of seed, offset, row and column alone.
"""

from lightning_kernels._core.random import random_word_at, words_of_groups
from lightning_kernels._core.rate import load_rate
from lightning_kernels._core.row_tiles import (
    centred_rows,
    columns_of,
    full_rows,
    load_normalised_rows,
    load_parameter,
    load_rows,
    no_pieces,
    norm_gradient,
    plus,
    plus_products,
    reciprocal,
    reciprocal_sqrt,
    row_sums,
    row_sums_of_products,
    rows_where,
    store_column_sums,
    store_rows,
    times,
)
from lightning_kernels._core.tiles import scaled, shifted
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _branch_factors(
    row, layer_scale_ptr, num_rows, size, rows_per_sample, threshold, scale, rate_ptr,
    path_threshold, path_scale, path_rate_ptr, state_ptr, seed, offset, DROPS: tl.constexpr,
    DROPS_PATHS: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Return the factors of the branch, as tuples of pieces.

    Returns:
        The factors of dropout and stochastic depth. These times the layer scale. The mask of rows
        that stochastic depth keeps.
    """
    kept = row >= 0
    of_row = tl.full((1, 1), 1.0, tl.float32)
    if DROPS_PATHS:
        path_threshold, path_scale = load_rate(path_rate_ptr, path_threshold, path_scale)
        word = random_word_at(state_ptr, seed, offset, row // rows_per_sample)
        kept = word >= path_threshold
        of_row = tl.where(kept, path_scale, 0.0)
    if DROPS:
        threshold, scale = load_rate(rate_ptr, threshold, scale)
    first = tl.cdiv(num_rows // rows_per_sample, 4) + row.to(tl.int64) * tl.cdiv(size, 4)
    factors = no_pieces()
    products = no_pieces()
    for piece in tl.static_range(PIECES):
        factor = of_row
        if DROPS:
            group = first + (piece * BLOCK_SIZE // 4 + tl.arange(0, BLOCK_SIZE // 4)[None, :])
            word = words_of_groups(state_ptr, seed, offset, group)
            factor = tl.where(word < threshold, 0.0, scale) * of_row
        column, in_columns = columns_of(piece, size, ROWS, PIECES, BLOCK_SIZE, FULL)
        product = scaled(factor, layer_scale_ptr, column, in_columns)
        if DROPS_PATHS:
            product = tl.where(kept, product, 0.0)  # 0 times an infinite layer scale would be nan
        factors += (factor,)
        products += (product,)
    return factors, products, kept


@triton.jit(do_not_specialize=["threshold", "path_threshold", "seed", "offset"])
def _add_norm_forward_kernel(
    x_ptr, residual_ptr, layer_scale_ptr, weight_ptr, bias_ptr, y_ptr, z_ptr, statistics_ptr,
    num_rows, size, rows_per_sample, eps, threshold: tl.uint32, scale, rate_ptr,
    path_threshold: tl.uint32, path_scale, path_rate_ptr, state_ptr, seed: tl.uint64,
    offset: tl.uint64, DROPS: tl.constexpr, DROPS_PATHS: tl.constexpr, CENTRED: tl.constexpr,
    ROWS: tl.constexpr, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Store the sum ``z`` and the normalised sum ``y`` of ``ROWS`` rows, and their statistics.

    The norm is that of ``z`` after rounding to its dtype, because the backward pass reads this
    ``z``.
    """
    if FULL:
        size = PIECES * BLOCK_SIZE  # a constant
    row = (tl.program_id(0) + 0 * num_rows) * ROWS + tl.arange(0, ROWS)[:, None]
    in_rows = row < num_rows
    place = row.to(tl.int64) * size
    _, factors, kept = _branch_factors(
        row, layer_scale_ptr, num_rows, size, rows_per_sample,
        threshold, scale, rate_ptr, path_threshold, path_scale, path_rate_ptr,
        state_ptr, seed, offset, DROPS, DROPS_PATHS, ROWS, PIECES, BLOCK_SIZE, FULL,
    )  # fmt: skip
    read = in_rows
    if residual_ptr is not None:
        read = in_rows & kept  # without a residual all rows are read, so dropped nan stays nan
    x = load_rows(x_ptr + place, 1, read, size, ROWS, PIECES, BLOCK_SIZE, FULL)
    if residual_ptr is not None:
        residual = load_rows(residual_ptr + place, 1, in_rows, size, ROWS, PIECES, BLOCK_SIZE, FULL)
    z = no_pieces()
    for piece in tl.static_range(PIECES):
        column, in_columns = columns_of(piece, size, ROWS, PIECES, BLOCK_SIZE, FULL)
        total = x[piece] * factors[piece]
        if residual_ptr is not None:
            total += residual[piece]
        stored = total.to(z_ptr.dtype.element_ty)
        tl.store(z_ptr + place + column, stored, mask=in_rows & in_columns)
        # Out of bounds z may be nan: 0 times an infinite factor.
        z += (tl.where(in_columns, stored.to(tl.float32), 0.0),)
    if CENTRED:
        mean = row_sums(z) / size
        tl.store(statistics_ptr + row, mean, mask=in_rows)
        statistics_ptr += num_rows
        z = centred_rows(z, mean, size, PIECES, BLOCK_SIZE, FULL)
    mean_square = row_sums_of_products(z, z) * reciprocal(size, FULL)
    rstd = reciprocal_sqrt(mean_square + eps)
    tl.store(statistics_ptr + row, rstd, mask=in_rows)
    for piece in tl.static_range(PIECES):
        column, in_columns = columns_of(piece, size, ROWS, PIECES, BLOCK_SIZE, FULL)
        y = scaled(z[piece] * rstd, weight_ptr, column, in_columns)
        y = shifted(y, bias_ptr, column, in_columns).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + place + column, y, mask=in_rows & in_columns)


@triton.jit(do_not_specialize=["threshold", "path_threshold", "seed", "offset"])
def _add_norm_backward_kernel(
    grad_y_ptr, grad_z_ptr, x_ptr, z_ptr, layer_scale_ptr, weight_ptr, statistics_ptr,
    grad_x_ptr, grad_residual_ptr, partial_scale_ptr, partial_weight_ptr, partial_bias_ptr,
    num_rows, size, rows_per_sample, threshold: tl.uint32, scale, rate_ptr,
    path_threshold: tl.uint32, path_scale, path_rate_ptr, state_ptr, seed: tl.uint64,
    offset: tl.uint64, SKIPS: tl.constexpr, DROPS: tl.constexpr, DROPS_PATHS: tl.constexpr,
    CENTRED: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FULL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store the gradients of x and the residual, and partial sums of the parameters' gradients.

    Program ``i`` takes every ``num_programs``-th tile of rows, from tile ``i`` on. It reads each
    tensor once, and stores its partial sums as one float32 row per parameter. With ``SKIPS`` it
    does not read ``x`` in dropped rows.
    """
    if FULL:
        size = PIECES * BLOCK_SIZE  # a constant
    sum_scale = full_rows(0.0, ROWS, PIECES, BLOCK_SIZE)
    sum_weight = full_rows(0.0, ROWS, PIECES, BLOCK_SIZE)
    sum_bias = full_rows(0.0, ROWS, PIECES, BLOCK_SIZE)
    weight = load_parameter(weight_ptr, 1.0, size, ROWS, PIECES, BLOCK_SIZE, FULL)
    tiles = (num_rows - 1) // ROWS + 1
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        row = (index + 0 * num_rows) * ROWS + tl.arange(0, ROWS)[:, None]
        in_rows = row < num_rows
        place = row.to(tl.int64) * size
        grad = full_rows(0.0, ROWS, PIECES, BLOCK_SIZE)
        if grad_y_ptr is not None:
            grad = load_rows(grad_y_ptr + place, 1, in_rows, size, ROWS, PIECES, BLOCK_SIZE, FULL)
            z = load_rows(z_ptr + place, 1, in_rows, size, ROWS, PIECES, BLOCK_SIZE, FULL)
            normalised, rstd = load_normalised_rows(
                z, statistics_ptr, row, in_rows, num_rows, size, CENTRED, PIECES, BLOCK_SIZE, FULL
            )
            if partial_weight_ptr is not None:
                sum_weight = plus_products(sum_weight, grad, normalised)
            if partial_bias_ptr is not None:
                sum_bias = plus(sum_bias, grad)
            grad = norm_gradient(grad, normalised, rstd, weight, size, CENTRED, FULL)
        if grad_z_ptr is not None:
            grad_z = load_rows(grad_z_ptr + place, 1, in_rows, size, ROWS, PIECES, BLOCK_SIZE, FULL)
            grad = plus(grad, grad_z)
        if grad_residual_ptr is not None:
            store_rows(grad_residual_ptr + place, grad, in_rows, size, PIECES, BLOCK_SIZE, FULL)
        if grad_x_ptr is not None or partial_scale_ptr is not None:
            unscaled, factors, kept = _branch_factors(
                row, layer_scale_ptr, num_rows, size, rows_per_sample,
                threshold, scale, rate_ptr, path_threshold, path_scale, path_rate_ptr,
                state_ptr, seed, offset, DROPS, DROPS_PATHS, ROWS, PIECES, BLOCK_SIZE, FULL,
            )  # fmt: skip
            read = in_rows
            if SKIPS:
                grad = rows_where(kept, grad)
                read = in_rows & kept
            if partial_scale_ptr is not None:
                x = load_rows(x_ptr + place, 1, read, size, ROWS, PIECES, BLOCK_SIZE, FULL)
                sum_scale = plus_products(sum_scale, times(grad, unscaled), x)
            if grad_x_ptr is not None:
                grad_x = times(grad, factors)
                store_rows(grad_x_ptr + place, grad_x, in_rows, size, PIECES, BLOCK_SIZE, FULL)
    place = tl.program_id(0).to(tl.int64) * size
    store_column_sums(partial_scale_ptr, place, sum_scale, size, PIECES, BLOCK_SIZE, FULL)
    store_column_sums(partial_weight_ptr, place, sum_weight, size, PIECES, BLOCK_SIZE, FULL)
    store_column_sums(partial_bias_ptr, place, sum_bias, size, PIECES, BLOCK_SIZE, FULL)
