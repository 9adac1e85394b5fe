"""The kernels of layer norm and RMS norm, for rows that fit a program's registers and longer rows.

The rows are indexed by three dimensions: outer, ``inner`` and ``last``. Row ``r`` begins at
``r // (inner * last) * stride_outer + r // last % inner * stride_inner + r % last * stride_last``.

The elements of a row are neighbours in memory. With ``TRANSPOSED`` they are ``stride_column``
apart, and elements of neighbouring rows are neighbours (``stride_last`` is 1).

With ``CENTRED`` (layer norm) the statistics are the means of all rows, followed by
``1/sqrt(variance + eps)`` of all rows. Without (RMS norm) they are ``1/sqrt(mean square + eps)``.
"""

from lightning_kernels._core.row_tiles import (
    centred_rows,
    columns_of,
    full_rows,
    load_normalised_rows,
    load_parameter,
    load_rows,
    mean_of,
    norm_gradient,
    plus,
    plus_products,
    reciprocal,
    reciprocal_sqrt,
    row_sums,
    row_sums_of_products,
    store_column_sums,
    store_rows,
)
from lightning_kernels._core.tiles import scaled, shifted
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _offset(row, inner, last, stride_outer, stride_inner, stride_last):
    """Return the memory offset of the first element of a row."""
    outer = (row // (inner * last)).to(tl.int64)
    middle = (row // last % inner).to(tl.int64)
    return outer * stride_outer + middle * stride_inner + (row % last).to(tl.int64) * stride_last


@triton.jit
def _tiles(num_rows, last, ROWS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Return the number of tiles of ``ROWS`` rows."""
    tiles = (num_rows - 1) // ROWS + 1
    if TRANSPOSED:
        tiles = num_rows // last * ((last - 1) // ROWS + 1)
    return tiles


@triton.jit
def _tile(
    index, num_rows, inner, last, stride_outer, stride_inner, stride_last,
    ROWS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Return the rows of a tile, the mask of valid rows, and the offsets where rows begin.

    Rows have the integer type of ``num_rows``: 32 bits cost half of the instructions of 64 bits.
    With ``TRANSPOSED`` all rows of a tile have the same outer and inner index, so that the compiler
    can see that they are neighbours in memory.
    """
    index += 0 * num_rows
    place = tl.arange(0, ROWS)[:, None]
    if TRANSPOSED:
        tiles = (last - 1) // ROWS + 1
        outer = index // tiles
        place = index % tiles * ROWS + place
        row = outer * last + place
        in_rows = place < last
        first = (outer // inner).to(tl.int64) * stride_outer
        first += (outer % inner).to(tl.int64) * stride_inner
        first = first + place.to(tl.int64) * stride_last
    else:
        row = index * ROWS + place
        in_rows = row < num_rows
        first = _offset(row, inner, last, stride_outer, stride_inner, stride_last)
    return row, in_rows, first


@triton.jit
def _row_norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, num_rows, size, eps,
    inner, last, stride_outer, stride_inner, stride_last, stride_column,
    CENTRED: tl.constexpr, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Normalise ``ROWS`` rows, which the program holds in registers. Store their statistics."""
    if FULL:
        size = PIECES * BLOCK_SIZE  # a constant
    if TRANSPOSED:
        stride_column = stride_column.to(tl.int64)
    row, in_rows, first = _tile(
        tl.program_id(0), num_rows, inner, last, stride_outer, stride_inner, stride_last,
        ROWS, TRANSPOSED,
    )  # fmt: skip
    x = load_rows(x_ptr + first, stride_column, in_rows, size, ROWS, PIECES, BLOCK_SIZE, FULL)
    if CENTRED:
        mean = row_sums(x) / size  # the product with 1 / size would be less exact
        tl.store(statistics_ptr + row, mean, mask=in_rows)
        statistics_ptr += num_rows
        x = centred_rows(x, mean, size, PIECES, BLOCK_SIZE, FULL)
    mean_square = row_sums_of_products(x, x) * reciprocal(size, FULL)
    rstd = reciprocal_sqrt(mean_square + eps)
    tl.store(statistics_ptr + row, rstd, mask=in_rows)
    y_ptr += row.to(tl.int64) * size
    for piece in tl.static_range(PIECES):
        column, in_columns = columns_of(
            piece, size, 1 if TRANSPOSED else ROWS, PIECES, BLOCK_SIZE, FULL
        )
        y = scaled(x[piece] * rstd, weight_ptr, column, in_columns)
        y = shifted(y, bias_ptr, column, in_columns).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + column, y, mask=in_rows & in_columns)


@triton.jit
def _row_norm_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, statistics_ptr, grad_x_ptr, partial_weight_ptr, partial_bias_ptr,
    num_rows, size, inner, last, stride_outer, stride_inner, stride_last, stride_column,
    CENTRED: tl.constexpr, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store the gradient of x, and partial sums of the gradients of weight and bias.

    Program ``i`` takes every ``num_programs``-th tile of rows, from tile ``i`` on. It reads ``x``
    and ``grad`` once, ``STAGES - 1`` tiles ahead, and stores its partial sums as one float32 row.
    """
    if FULL:
        size = PIECES * BLOCK_SIZE  # a constant
    if TRANSPOSED:
        stride_column = stride_column.to(tl.int64)
    height: tl.constexpr = 1 if TRANSPOSED else ROWS
    weight = load_parameter(weight_ptr, 1.0, size, height, PIECES, BLOCK_SIZE, FULL)
    sum_weight = full_rows(0.0, ROWS, PIECES, BLOCK_SIZE)
    sum_bias = full_rows(0.0, ROWS, PIECES, BLOCK_SIZE)
    tiles = _tiles(num_rows, last, ROWS, TRANSPOSED)
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        row, in_rows, first = _tile(
            index, num_rows, inner, last, stride_outer, stride_inner, stride_last,
            ROWS, TRANSPOSED,
        )  # fmt: skip
        row_place = row.to(tl.int64) * size
        grad = load_rows(grad_ptr + row_place, 1, in_rows, size, ROWS, PIECES, BLOCK_SIZE, FULL)
        x = load_rows(x_ptr + first, stride_column, in_rows, size, ROWS, PIECES, BLOCK_SIZE, FULL)
        normalised, rstd = load_normalised_rows(
            x, statistics_ptr, row, in_rows, num_rows, size, CENTRED, PIECES, BLOCK_SIZE, FULL
        )
        if partial_weight_ptr is not None:
            sum_weight = plus_products(sum_weight, grad, normalised)
        if partial_bias_ptr is not None:
            sum_bias = plus(sum_bias, grad)
        if grad_x_ptr is not None:
            grad = norm_gradient(grad, normalised, rstd, weight, size, CENTRED, FULL)
            store_rows(grad_x_ptr + row_place, grad, in_rows, size, PIECES, BLOCK_SIZE, FULL)
    place = tl.program_id(0).to(tl.int64) * size
    store_column_sums(partial_weight_ptr, place, sum_weight, size, PIECES, BLOCK_SIZE, FULL)
    store_column_sums(partial_bias_ptr, place, sum_bias, size, PIECES, BLOCK_SIZE, FULL)


@triton.jit
def _long_row_norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, num_rows, size, eps,
    inner, last, stride_outer, stride_inner, stride_last,
    CENTRED: tl.constexpr, BLOCK_SIZE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Normalise a row that is longer than a block.

    Both loops load ``STAGES - 1`` blocks ahead. The first loop merges the statistics of the blocks
    one after the other. It subtracts the first element of the row from all elements, so that a
    large mean loses no digits. The second loop normalises, from the last block to the first,
    because the end of the row is still in the cache.
    """
    row = tl.program_id(0).to(tl.int64)
    x_row_ptr = x_ptr + _offset(row, inner, last, stride_outer, stride_inner, stride_last)
    y_row_ptr = y_ptr + row * size
    column = tl.arange(0, BLOCK_SIZE)
    mean = 0.0
    squares = 0.0
    pivot = 0.0
    if CENTRED:
        pivot = tl.load(x_row_ptr).to(tl.float32)
    for start in tl.range(0, size, BLOCK_SIZE, num_stages=STAGES):
        in_columns = start + column < size
        x = tl.load(x_row_ptr + start + column, mask=in_columns, other=0.0).to(tl.float32)
        if CENTRED:
            x = tl.where(in_columns, x - pivot, 0.0)
            count = tl.minimum(size - start, BLOCK_SIZE)
            block_mean = tl.sum(x, axis=0) / count
            x = tl.where(in_columns, x - block_mean, 0.0)
            share = count / (start + count).to(tl.float32)
            difference = block_mean - mean
            mean += difference * share
            squares += difference * difference * share * start
        squares += tl.sum(x * x, axis=0)
    rstd = reciprocal_sqrt(mean_of(squares, size) + eps)
    if CENTRED:
        tl.store(statistics_ptr + row, pivot + mean)
        statistics_ptr += num_rows
    tl.store(statistics_ptr + row, rstd)
    blocks = tl.cdiv(size, BLOCK_SIZE)
    for block in tl.range(0, blocks, num_stages=STAGES):
        index = (blocks - 1 - block) * BLOCK_SIZE + column
        in_columns = index < size
        x = tl.load(
            x_row_ptr + index, mask=in_columns, other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        y = shifted(
            scaled((x - pivot - mean) * rstd, weight_ptr, index, in_columns),
            bias_ptr,
            index,
            in_columns,
        )
        tl.store(y_row_ptr + index, y.to(y_ptr.dtype.element_ty), mask=in_columns)


@triton.jit
def _long_row_norm_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, statistics_ptr, grad_x_ptr,
    num_rows, size, inner, last, stride_outer, stride_inner, stride_last,
    CENTRED: tl.constexpr, BLOCK_SIZE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store the gradient of a row of x that is longer than a block.

    The first loop sums over the row. The second loop computes the gradient, from the last block to
    the first, because the end of the row is still in the cache.
    """
    row = tl.program_id(0).to(tl.int64)
    x_row_ptr = x_ptr + _offset(row, inner, last, stride_outer, stride_inner, stride_last)
    grad_row_ptr = grad_ptr + row * size
    column = tl.arange(0, BLOCK_SIZE)
    mean = 0.0
    if CENTRED:
        mean = tl.load(statistics_ptr + row)
        statistics_ptr += num_rows
    rstd = tl.load(statistics_ptr + row)
    projections = tl.zeros((BLOCK_SIZE,), tl.float32)
    grads = tl.zeros((BLOCK_SIZE,), tl.float32)
    for start in tl.range(0, size, BLOCK_SIZE, num_stages=STAGES):
        index = start + column
        in_columns = index < size
        x = tl.load(x_row_ptr + index, mask=in_columns, other=0.0).to(tl.float32)
        grad = tl.load(grad_row_ptr + index, mask=in_columns, other=0.0).to(tl.float32)
        grad = scaled(grad, weight_ptr, index, in_columns)
        projections += grad * tl.where(in_columns, (x - mean) * rstd, 0.0)
        grads += grad
    projection = tl.sum(projections, axis=0) / size
    mean_grad = 0.0
    if CENTRED:
        mean_grad = tl.sum(grads, axis=0) / size
    blocks = tl.cdiv(size, BLOCK_SIZE)
    for block in tl.range(0, blocks, num_stages=STAGES):
        index = (blocks - 1 - block) * BLOCK_SIZE + column
        in_columns = index < size
        x = tl.load(
            x_row_ptr + index, mask=in_columns, other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        grad = tl.load(
            grad_row_ptr + index, mask=in_columns, other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        grad = scaled(grad, weight_ptr, index, in_columns)
        grad_x = (grad - mean_grad - (x - mean) * rstd * projection) * rstd
        grad_x = grad_x.to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + row * size + index, grad_x, mask=in_columns)


@triton.jit
def _long_row_norm_parameters_kernel(
    grad_ptr, x_ptr, statistics_ptr, partial_weight_ptr, partial_bias_ptr,
    num_rows, size, inner, last, stride_outer, stride_inner, stride_last,
    CENTRED: tl.constexpr, BLOCK_SIZE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store partial sums of the gradients of weight and bias, for rows longer than a block.

    Program (i, j) sums block ``i`` of the columns over every ``num_programs(1)``-th row, from row
    ``j`` on.
    """
    column = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    in_columns = column < size
    sum_weight = tl.zeros((BLOCK_SIZE,), tl.float32)
    sum_bias = tl.zeros((BLOCK_SIZE,), tl.float32)
    for index in tl.range(tl.program_id(1), num_rows, tl.num_programs(1), num_stages=STAGES):
        row = index * tl.full((), 1, tl.int64)
        grad = tl.load(grad_ptr + row * size + column, mask=in_columns, other=0.0).to(tl.float32)
        if partial_weight_ptr is not None:
            x_row_ptr = x_ptr + _offset(row, inner, last, stride_outer, stride_inner, stride_last)
            x = tl.load(x_row_ptr + column, mask=in_columns, other=0.0).to(tl.float32)
            if CENTRED:
                x -= tl.load(statistics_ptr + row)
                sum_weight += grad * x * tl.load(statistics_ptr + num_rows + row)
            else:
                sum_weight += grad * x * tl.load(statistics_ptr + row)
        sum_bias += grad
    partial = tl.program_id(1).to(tl.int64) * size + column
    if partial_weight_ptr is not None:
        tl.store(partial_weight_ptr + partial, sum_weight, mask=in_columns)
    if partial_bias_ptr is not None:
        tl.store(partial_bias_ptr + partial, sum_bias, mask=in_columns)
