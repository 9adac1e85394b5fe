"""The kernels of batch norm, for both memory layouts.

The kernels treat a tensor as a matrix. In channels last, and for the shape ``(N, C)``, the matrix
has a column for each channel. In the contiguous layout it has a row for each plane: sample ``n``
and channel ``c`` are row ``n * C + c``.

A program of an elementwise kernel takes one tile of this matrix. The kernels that sum over channels
take groups: several programs (splits) share the tiles of a group, and each stores partial sums. In
channels last a group is a slab of neighbouring columns. In the contiguous layout a group is one
channel, which is every ``C``-th row. ``OUTER`` x ``INNER`` is the shape of a tile of a group.
"""

from lightning_kernels._core.activation import (
    activate,
    activation_gradient,
    gradient_where_passed,
    load_signs,
    passes,
    store_signs,
)
from lightning_kernels._core.tiles import load_or
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _load_statistics(
    mean_ptr, variance_ptr, channel, in_channels, channels, eps, TRAINING: tl.constexpr
):
    """Return mean and 1/sqrt(variance + eps) of each channel.

    In training one tensor holds the means and then the variances, and ``mean_ptr`` and
    ``variance_ptr`` both point to it.
    """
    if TRAINING:
        variance_ptr += channels
    mean = load_or(mean_ptr, channel, in_channels, 0.0)
    return mean, tl.rsqrt(load_or(variance_ptr, channel, in_channels, 1.0) + eps)


@triton.jit
def _in_group(group, channels, INNER: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return the channels of a group, (1, INNER) or (1, 1), and the mask of valid channels."""
    if CHANNELS_LAST:
        channel = group * INNER + tl.arange(0, INNER)[None, :]
    else:
        channel = group + tl.zeros((1, 1), tl.int32)
    return channel, channel < channels


@triton.jit
def _tile_of_group(
    index, group, outer, inner, channels,
    OUTER: tl.constexpr, INNER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Return the positions of the elements in tile ``index`` of a group.

    Returns:
        The rows of the matrix. The mask of valid rows. The first column. The mask of valid
        elements. The number of elements of the tile per channel.
    """
    outer_offset = tl.arange(0, OUTER)[:, None]
    if CHANNELS_LAST:
        first_outer = index * tl.full((), OUTER, tl.int64)
        first_column = group * INNER
        row = first_outer + outer_offset
    else:
        inner_tiles = tl.cdiv(inner, INNER)
        first_outer = (index // inner_tiles) * tl.full((), OUTER, tl.int64)
        first_column = index % inner_tiles * INNER
        row = (first_outer + outer_offset) * channels + group
    rows = tl.minimum(outer - first_outer, OUTER).to(tl.int32)
    columns = tl.minimum(inner - first_column, INNER)
    in_rows = outer_offset < rows
    in_bounds = in_rows & (tl.arange(0, INNER)[None, :] < columns)
    return row, in_rows, first_column, in_bounds, rows * (1 if CHANNELS_LAST else columns)


@triton.jit
def _sum(values, CHANNELS_LAST: tl.constexpr):
    """Return the sum of a tile for each channel, computed in float64.

    Kernels call it outside of loops, so float64 costs little time.
    """
    values = values.to(tl.float64)
    if not CHANNELS_LAST:
        values = tl.sum(values, axis=1, keep_dims=True)
    return tl.sum(values, axis=0, keep_dims=True).to(tl.float32)


@triton.jit
def _batch_norm_statistics_kernel(
    x_ptr, partial_ptr, outer, inner, channels, groups,
    OUTER: tl.constexpr, INNER: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store mean, sum of squared deviations and count of a program's part of each channel.

    The kernel sums differences to the mean of the program's first tile. With T tiles this mean is
    at most sqrt(T) standard deviations from the mean of all tiles, so the subtraction for the
    variance loses few digits, however large the mean.
    """
    inner = inner // ALIGNMENT * ALIGNMENT  # unchanged: shows the compiler the alignment of rows
    group = tl.program_id(0) % groups
    split = tl.program_id(0) // groups
    splits = tl.num_programs(0) // groups
    tiles = tl.cdiv(outer, OUTER)
    if not CHANNELS_LAST:
        tiles *= tl.cdiv(inner, INNER)
    column = tl.arange(0, INNER)[None, :]
    row, _, first, in_bounds, count = _tile_of_group(
        split, group, outer, inner, channels, OUTER, INNER, CHANNELS_LAST
    )
    x = tl.load(x_ptr + row * inner + first + column, mask=in_bounds, other=0.0).to(tl.float32)
    shift = _sum(x, CHANNELS_LAST) / count
    centred = tl.where(in_bounds, x - shift, 0.0)
    total, squares = centred, centred * centred
    for index in range(split + splits, tiles, splits):
        row, _, first, in_bounds, size = _tile_of_group(
            index, group, outer, inner, channels, OUTER, INNER, CHANNELS_LAST
        )
        x = tl.load(x_ptr + row * inner + first + column, mask=in_bounds, other=0.0).to(tl.float32)
        centred = tl.where(in_bounds, x - shift, 0.0)
        total += centred
        squares += centred * centred
        count += size
    offset = _sum(total, CHANNELS_LAST) / count
    deviations = _sum(squares, CHANNELS_LAST) - offset * offset * count
    channel, in_channels = _in_group(group, channels, INNER, CHANNELS_LAST)
    out_ptr = partial_ptr + split * channels + channel
    tl.store(out_ptr, shift + offset, mask=in_channels)
    tl.store(out_ptr + splits * channels, deviations, mask=in_channels)
    tl.store(out_ptr + 2 * splits * channels, channel * 0.0 + count, mask=in_channels)


@triton.jit
def _tile_of_matrix(
    rows, columns, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Return the positions of the elements in the program's tile of the matrix.

    The first program takes the last tile. The previous pass has read this tile last, so the cache
    may still contain it.

    Returns:
        The rows. The first column. The mask of valid elements. The channels. The mask of valid
        channels.
    """
    index = tl.num_programs(0) - 1 - tl.program_id(0)
    tiles = tl.cdiv(columns, COLUMNS)
    first_row = (index // tiles) * tl.full((), ROWS, tl.int64)
    first_column = index % tiles * COLUMNS
    offset = tl.arange(0, ROWS)[:, None]
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    row = first_row + offset
    if CHANNELS_LAST:
        channel = column
        in_channels = column < columns
    else:
        channel = ((first_row % channels).to(tl.int32) + offset) % channels
        in_channels = row < rows
    return row, first_column, (row < rows) & (column < columns), channel, in_channels


@triton.jit
def _batch_norm_forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    y_ptr,
    signs_ptr,
    rows,
    columns,
    channels,
    eps,
    parameter,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Normalise a tile, add the residual and activate. Store the signs if ``signs_ptr`` is given.

    A sign is the bit that :func:`lightning_kernels._core.activation.passes` returns.
    """
    columns = columns // ALIGNMENT * ALIGNMENT
    row, first, in_bounds, channel, in_channels = _tile_of_matrix(
        rows, columns, channels, ROWS, COLUMNS, CHANNELS_LAST
    )
    mean, rstd = _load_statistics(
        mean_ptr, variance_ptr, channel, in_channels, channels, eps, TRAINING
    )
    weight = load_or(weight_ptr, channel, in_channels, 1.0)
    bias = load_or(bias_ptr, channel, in_channels, 0.0)
    tile = row * columns + first + tl.arange(0, COLUMNS)[None, :]
    x = tl.load(x_ptr + tile, mask=in_bounds, other=0.0).to(tl.float32)
    z = (x - mean) * rstd * weight + bias
    if residual_ptr is not None:
        z += tl.load(residual_ptr + tile, mask=in_bounds, other=0.0).to(tl.float32)
    if signs_ptr is not None:
        positive = passes(z, ACTIVATION)
        store_signs(signs_ptr, positive, row, first, rows, columns, ROWS, COLUMNS)
    y = activate(z, parameter, ACTIVATION)
    tl.store(y_ptr + tile, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit
def _load_gradient(
    grad_ptr, x_ptr, residual_ptr, signs_ptr, row, first, in_bounds, in_rows, columns,
    mean, rstd, weight, bias, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the activation's input, and the normalised x, of a tile."""
    tile = row * columns + first + tl.arange(0, COLUMNS)[None, :]
    grad = tl.load(grad_ptr + tile, mask=in_bounds, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + tile, mask=in_bounds, other=0.0).to(tl.float32)
    normalised = (x - mean) * rstd
    if signs_ptr is not None:
        passed = load_signs(signs_ptr, row, first, in_rows, columns, ROWS, COLUMNS)
        grad = gradient_where_passed(grad, passed, parameter, ACTIVATION)
    elif ACTIVATION is not None:
        z = normalised * weight + bias
        if residual_ptr is not None:
            z += tl.load(residual_ptr + tile, mask=in_bounds, other=0.0).to(tl.float32)
        grad = activation_gradient(grad, z, parameter, ACTIVATION)
    return grad, normalised


@triton.jit
def _batch_norm_reduce_kernel(
    grad_ptr,
    x_ptr,
    residual_ptr,
    signs_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    partial_ptr,
    outer,
    inner,
    channels,
    groups,
    eps,
    parameter,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Store partial sums per channel: of the gradient, and of the gradient times normalised x."""
    inner = inner // ALIGNMENT * ALIGNMENT
    group = tl.program_id(0) % groups
    split = tl.program_id(0) // groups
    splits = tl.num_programs(0) // groups
    tiles = tl.cdiv(outer, OUTER)
    if not CHANNELS_LAST:
        tiles *= tl.cdiv(inner, INNER)
    channel, in_channels = _in_group(group, channels, INNER, CHANNELS_LAST)
    mean, rstd = _load_statistics(
        mean_ptr, variance_ptr, channel, in_channels, channels, eps, TRAINING
    )
    weight = load_or(weight_ptr, channel, in_channels, 1.0)
    bias = load_or(bias_ptr, channel, in_channels, 0.0)
    total = tl.zeros((OUTER, INNER), tl.float32)
    products = tl.zeros((OUTER, INNER), tl.float32)
    for index in range(split, tiles, splits):
        row, in_rows, first, in_bounds, _ = _tile_of_group(
            index, group, outer, inner, channels, OUTER, INNER, CHANNELS_LAST
        )
        grad, normalised = _load_gradient(
            grad_ptr, x_ptr, residual_ptr, signs_ptr, row, first, in_bounds, in_rows,
            inner, mean, rstd, weight, bias, parameter, OUTER, INNER, ACTIVATION,
        )  # fmt: skip
        grad = tl.where(in_bounds, grad, 0.0)
        total += grad
        products += tl.where(in_bounds, grad * normalised, 0.0)
    out_ptr = partial_ptr + split * channels + channel
    tl.store(out_ptr, _sum(total, CHANNELS_LAST), mask=in_channels)
    tl.store(out_ptr + splits * channels, _sum(products, CHANNELS_LAST), mask=in_channels)


@triton.jit
def _batch_norm_sum_kernel(
    partial_ptr, sums_ptr, grad_weight_ptr, grad_bias_ptr, splits, channels,
    SPLITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Merge the partial sums in a fixed order. Store them as float32 and as parameters' gradients.

    The sum of the gradient is the gradient of the bias. The sum of its products with normalised x
    is the gradient of the weight.
    """
    split = tl.arange(0, SPLITS)[:, None]
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    in_channels = channel < channels
    total = tl.zeros((SPLITS, CHANNELS), tl.float32)
    products = tl.zeros((SPLITS, CHANNELS), tl.float32)
    for first in range(0, splits, SPLITS):
        in_bounds = (first + split < splits) & in_channels
        in_ptr = partial_ptr + (first + split) * channels + channel
        total += tl.load(in_ptr, mask=in_bounds, other=0.0)
        products += tl.load(in_ptr + splits * channels, mask=in_bounds, other=0.0)
    grad_bias = _sum(total, True)
    grad_weight = _sum(products, True)
    tl.store(sums_ptr + channel, grad_bias, mask=in_channels)
    tl.store(sums_ptr + channels + channel, grad_weight, mask=in_channels)
    if grad_weight_ptr is not None:
        grad_weight = grad_weight.to(grad_weight_ptr.dtype.element_ty)
        tl.store(grad_weight_ptr + channel, grad_weight, mask=in_channels)
    if grad_bias_ptr is not None:
        grad_bias = grad_bias.to(grad_bias_ptr.dtype.element_ty)
        tl.store(grad_bias_ptr + channel, grad_bias, mask=in_channels)


@triton.jit
def _batch_norm_backward_kernel(
    grad_ptr,
    x_ptr,
    residual_ptr,
    signs_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    sums_ptr,
    grad_x_ptr,
    grad_residual_ptr,
    rows,
    columns,
    channels,
    count,
    eps,
    parameter,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Store a tile of the gradients of x and of the residual."""
    columns = columns // ALIGNMENT * ALIGNMENT
    row, first, in_bounds, channel, in_channels = _tile_of_matrix(
        rows, columns, channels, ROWS, COLUMNS, CHANNELS_LAST
    )
    mean, rstd = _load_statistics(
        mean_ptr, variance_ptr, channel, in_channels, channels, eps, TRAINING
    )
    weight = load_or(weight_ptr, channel, in_channels, 1.0)
    bias = load_or(bias_ptr, channel, in_channels, 0.0)
    grad, normalised = _load_gradient(
        grad_ptr, x_ptr, residual_ptr, signs_ptr, row, first, in_bounds, row < rows,
        columns, mean, rstd, weight, bias, parameter, ROWS, COLUMNS, ACTIVATION,
    )  # fmt: skip
    tile = row * columns + first + tl.arange(0, COLUMNS)[None, :]
    if grad_residual_ptr is not None:
        grad_residual = grad.to(grad_residual_ptr.dtype.element_ty)
        tl.store(grad_residual_ptr + tile, grad_residual, mask=in_bounds)
    if grad_x_ptr is not None:
        if TRAINING:
            grad -= load_or(sums_ptr, channel, in_channels, 0.0) / count
            projection = load_or(sums_ptr + channels, channel, in_channels, 0.0) / count
            grad -= normalised * projection
        grad_x = (grad * (rstd * weight)).to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + tile, grad_x, mask=in_bounds)
