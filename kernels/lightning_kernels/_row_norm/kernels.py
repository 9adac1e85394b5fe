"""The kernels of layer norm and RMS norm, for rows that fit a program's registers and longer rows.

The rows are indexed by three dimensions: outer, ``inner`` and ``last``. Row ``r`` begins at
``r // (inner * last) * stride_outer + r // last % inner * stride_inner + r % last * stride_last``.

The elements of a row are neighbours in memory. With ``TRANSPOSED`` they are ``stride_column``
apart, and elements of neighbouring rows are neighbours (``stride_last`` is 1).

With ``CENTRED`` (layer norm) the statistics are the means of all rows, followed by
``1/sqrt(variance + eps)`` of all rows. Without (RMS norm) they are ``1/sqrt(mean square + eps)``.
"""

from lightning_kernels._core.tiles import scaled, shifted
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _offset(row, inner, last, stride_outer, stride_inner, stride_last):
    """Return the memory offset of the first element of a row."""
    outer = row // (inner * last)
    return outer * stride_outer + row // last % inner * stride_inner + row % last * stride_last


@triton.jit
def _tiles(num_rows, last, ROWS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Return the number of tiles of ``ROWS`` rows."""
    tiles = tl.cdiv(num_rows, ROWS)
    if TRANSPOSED:
        tiles = num_rows // last * tl.cdiv(last, ROWS)
    return tiles


@triton.jit
def _tile(
    index, num_rows, inner, last, stride_outer, stride_inner, stride_last,
    ROWS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Return the rows of a tile, the mask of valid rows, and the offsets where rows begin.

    With ``TRANSPOSED`` all rows of a tile have the same outer and inner index, so that the compiler
    can see that they are neighbours in memory.
    """
    index = index * tl.full((), 1, tl.int64)
    place = tl.arange(0, ROWS)[:, None]
    if TRANSPOSED:
        tiles = tl.cdiv(last, ROWS)
        outer = index // tiles
        place = index % tiles * ROWS + place
        row = outer * last + place
        in_rows = place < last
        first = outer // inner * stride_outer + outer % inner * stride_inner + place * stride_last
    else:
        row = index * ROWS + place
        in_rows = row < num_rows
        first = _offset(row, inner, last, stride_outer, stride_inner, stride_last)
    return row, in_rows, first


@triton.jit
def _row_norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, num_rows, size, eps,
    inner, last, stride_outer, stride_inner, stride_last, stride_column,
    CENTRED: tl.constexpr, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Normalise ``ROWS`` rows, which the program holds in registers. Store their statistics."""
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    in_columns = column < size
    row, in_rows, first = _tile(
        tl.program_id(0), num_rows, inner, last, stride_outer, stride_inner, stride_last,
        ROWS, TRANSPOSED,
    )  # fmt: skip
    x_ptr += first + column.to(tl.int64) * stride_column
    x = tl.load(x_ptr, mask=in_rows & in_columns, other=0.0).to(tl.float32)
    if CENTRED:
        mean = tl.sum(x, axis=1, keep_dims=True) / size
        tl.store(statistics_ptr + row, mean, mask=in_rows)
        statistics_ptr += num_rows
        x = tl.where(in_columns, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / size + eps)
    tl.store(statistics_ptr + row, rstd, mask=in_rows)
    y = shifted(scaled(x * rstd, weight_ptr, column, in_columns), bias_ptr, column, in_columns)
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * size + column, y, mask=in_rows & in_columns)


@triton.jit
def _row_norm_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, statistics_ptr, grad_x_ptr, partial_weight_ptr, partial_bias_ptr,
    num_rows, size, inner, last, stride_outer, stride_inner, stride_last, stride_column,
    CENTRED: tl.constexpr, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Store the gradient of x, and partial sums of the gradients of weight and bias.

    Program ``i`` takes every ``num_programs``-th tile of rows, from tile ``i`` on. It reads ``x``
    and ``grad`` once, and stores its partial sums as one float32 row.
    """
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    in_columns = column < size
    weight = scaled(tl.full((1, BLOCK_SIZE), 1.0, tl.float32), weight_ptr, column, in_columns)
    sum_weight = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
    sum_bias = tl.zeros((ROWS, BLOCK_SIZE), tl.float32)
    tiles = _tiles(num_rows, last, ROWS, TRANSPOSED)
    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, in_rows, first = _tile(
            index, num_rows, inner, last, stride_outer, stride_inner, stride_last,
            ROWS, TRANSPOSED,
        )  # fmt: skip
        in_bounds = in_rows & in_columns
        grad = tl.load(grad_ptr + row * size + column, mask=in_bounds, other=0.0).to(tl.float32)
        x_tile_ptr = x_ptr + first + column.to(tl.int64) * stride_column
        x = tl.load(x_tile_ptr, mask=in_bounds, other=0.0).to(tl.float32)
        if CENTRED:
            x -= tl.load(statistics_ptr + row, mask=in_rows, other=0.0)
            rstd = tl.load(statistics_ptr + num_rows + row, mask=in_rows, other=0.0)
        else:
            rstd = tl.load(statistics_ptr + row, mask=in_rows, other=0.0)
        normalised = tl.where(in_bounds, x * rstd, 0.0)
        if partial_weight_ptr is not None:
            sum_weight += grad * normalised
        if partial_bias_ptr is not None:
            sum_bias += grad
        if grad_x_ptr is not None:
            grad *= weight
            projection = tl.sum(grad * normalised, axis=1, keep_dims=True) / size
            grad_x = grad - normalised * projection
            if CENTRED:
                grad_x -= tl.sum(grad, axis=1, keep_dims=True) / size
            grad_x = (grad_x * rstd).to(grad_x_ptr.dtype.element_ty)
            tl.store(grad_x_ptr + row * size + column, grad_x, mask=in_bounds)
    column = tl.arange(0, BLOCK_SIZE)
    partial = tl.program_id(0).to(tl.int64) * size + column
    if partial_weight_ptr is not None:
        tl.store(partial_weight_ptr + partial, tl.sum(sum_weight, axis=0), mask=column < size)
    if partial_bias_ptr is not None:
        tl.store(partial_bias_ptr + partial, tl.sum(sum_bias, axis=0), mask=column < size)


@triton.jit
def _long_row_norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, num_rows, size, eps,
    inner, last, stride_outer, stride_inner, stride_last,
    CENTRED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Normalise a row that is longer than a block.

    The first loop merges the statistics of the blocks one after the other. It subtracts the first
    element of the row from all elements, so that a large mean loses no digits. The second loop
    normalises, from the last block to the first, because the end of the row is still in the cache.
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
    for start in range(0, size, BLOCK_SIZE):
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
    rstd = tl.rsqrt(squares / size + eps)
    if CENTRED:
        tl.store(statistics_ptr + row, pivot + mean)
        statistics_ptr += num_rows
    tl.store(statistics_ptr + row, rstd)
    blocks = tl.cdiv(size, BLOCK_SIZE)
    for block in range(0, blocks):
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
    CENTRED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
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
    for start in range(0, size, BLOCK_SIZE):
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
    for block in range(0, blocks):
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
    CENTRED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Store partial sums of the gradients of weight and bias, for rows longer than a block.

    Program (i, j) sums block ``i`` of the columns over every ``num_programs(1)``-th row, from row
    ``j`` on.
    """
    column = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    in_columns = column < size
    sum_weight = tl.zeros((BLOCK_SIZE,), tl.float32)
    sum_bias = tl.zeros((BLOCK_SIZE,), tl.float32)
    for index in range(tl.program_id(1), num_rows, tl.num_programs(1)):
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
