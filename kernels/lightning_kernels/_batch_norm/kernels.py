"""The kernels of batch norm, for both memory layouts.

The kernels treat a tensor as a matrix. In channels last, and for the shape ``(N, C)``, a row is a
pixel, and has a column for each channel. In the contiguous layout a row is a sample, and has
``plane`` columns for each channel. So in both layouts ``column // plane`` is the channel, with a
``plane`` of 1 in channels last.

A program of an elementwise kernel takes one tile of this matrix. The kernels that sum over channels
take groups of ``CHANNELS`` channels. Several programs (splits) share the tiles of a group, and each
stores partial sums. A tile has ``ROWS`` rows and ``PIXELS`` columns of each channel of the group.
In the contiguous layout the columns of a channel may begin at any address. A tile then begins at
the multiple of 8 before it, so that loads are wide; sums leave out the columns of other channels.
"""

from lightning_kernels._batch_norm.signs import load_signs, store_signs
from lightning_kernels._core.activation import (
    activate,
    activation_gradient,
    gradient_where_passed,
    passes,
)
from lightning_kernels._core.row_tiles import reciprocal_sqrt
from lightning_kernels._core.tiles import load_or
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _spread(values, TIMES: tl.constexpr):
    """Repeat each element of a row ``TIMES`` times."""
    if TIMES > 1:
        SIZE: tl.constexpr = values.shape[1]
        values = tl.broadcast_to(values[:, :, None], (1, SIZE, TIMES))
        values = tl.reshape(values, (1, SIZE * TIMES))
    return values


@triton.jit
def _load_parameters(
    weight_ptr, bias_ptr, mean_ptr, variance_ptr, channel, in_channels, channels, eps,
    TRAINING: tl.constexpr,
):  # fmt: skip
    """Return mean, 1/sqrt(variance + eps), weight and bias of each channel.

    In training one tensor holds the means and then the variances, and ``mean_ptr`` and
    ``variance_ptr`` both point to it.
    """
    if TRAINING:
        variance_ptr += channels
    mean = load_or(mean_ptr, channel, in_channels, 0.0)
    rstd = reciprocal_sqrt(load_or(variance_ptr, channel, in_channels, 1.0) + eps)
    zero = tl.zeros_like(mean)
    weight = load_or(weight_ptr, channel, in_channels, zero + 1.0)
    return mean, rstd, weight, load_or(bias_ptr, channel, in_channels, zero)


@triton.jit
def _columns_of_group(
    index, group, tile, plane, columns, channels,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, RUN: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Return the positions of the columns ``index`` of a tile.

    Returns:
        The columns of the matrix. The mask of columns to load. The mask of columns to sum.
    """
    channel = group * CHANNELS + index // PIXELS
    if PIXELS == 1:
        in_channels = channel < columns
        return channel, in_channels, in_channels
    first = channel.to(columns.dtype) * plane
    size = tl.where(channel < channels, plane, 0)
    before = tile * PIXELS - tl.where(channel < channels, first % 8, 0)
    # The elements of one vector have one mask, else the compiler would load each by itself.
    in_bounds = before + index // ALIGNMENT * ALIGNMENT % PIXELS < size
    column = first // 8 * 8 + tile * PIXELS + index % PIXELS
    if RUN > 1:
        return column, in_bounds, in_bounds
    return column, in_bounds, (before + index % PIXELS).to(tl.uint32) < size.to(tl.uint32)


@triton.jit
def _tile_of_group(
    index, group, rows, columns, plane, channels, tiles,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    RUN: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Return the positions of the elements in tile ``index`` of a group.

    Returns:
        The tile's number in its row of ``tiles``. The rows. The memory offsets. The mask of
        elements to load. The mask of elements to sum.
    """
    tile = index % tiles if PIXELS > 1 else 0
    row = (index // tiles if PIXELS > 1 else index) * tl.full((), ROWS, tl.int64)
    row += tl.arange(0, ROWS)[:, None]
    column, in_bounds, in_sum = _columns_of_group(
        tl.arange(0, CHANNELS * PIXELS)[None, :], group, tile, plane, columns, channels,
        CHANNELS, PIXELS, RUN, ALIGNMENT,
    )  # fmt: skip
    if ROWS > 1:
        in_bounds &= row < rows
        in_sum &= row < rows
    return tile, row, row * columns + column, in_bounds, in_sum


@triton.jit
def _count_of_tile(
    index, group, rows, plane, tiles,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Return the number of elements per channel in tile ``index`` of a group."""
    if PIXELS == 1:
        count = tl.minimum(rows - index * tl.full((), ROWS, tl.int64), ROWS).to(tl.int32)
    else:
        first = -(index % tiles) * PIXELS
        if RUN == 1:
            channel = group * CHANNELS + tl.arange(0, CHANNELS)[None, :]
            first += channel * plane & 7
        count = tl.maximum(tl.minimum(first + plane, PIXELS) - tl.maximum(first, 0), 0)
    return count


@triton.jit
def _sum(values, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Return the sum of a tile for each channel of a group.

    A thread adds pairs of its elements as float32, since some GPUs have few adders for float64.
    """
    if PIXELS > 1:
        values = tl.sum(tl.reshape(values, (CHANNELS, PIXELS // 2, 2)), axis=2)
        values = tl.sum(values.to(tl.float64), axis=1)
    else:
        ROWS: tl.constexpr = values.shape[0]
        values = tl.sum(tl.reshape(values, (2, ROWS // 2, CHANNELS)), axis=0)
        values = tl.sum(values.to(tl.float64), axis=0)
    return values.to(tl.float32)[None, :]


@triton.jit(
    do_not_specialize=["rows", "columns", "channels", "groups", "tiles"],
    do_not_specialize_on_alignment=["plane"],
)
def _batch_norm_statistics_kernel(
    x_ptr, partial_ptr, rows, columns, plane, channels, groups, tiles,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    RUN: tl.constexpr, ALIGNMENT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store mean, sum of squared deviations and count of a program's part of each channel.

    The mean is the sum of two numbers, so that it is not rounded before all are merged. The kernel
    sums differences to the mean of the first tile of a row. If this tile has one of T
    elements of the channel, its mean is at most sqrt(T) standard deviations from the mean of all,
    so the subtraction for the variance loses few digits, however large the mean.
    """
    columns = columns // ALIGNMENT * ALIGNMENT  # unchanged: shows the compiler the alignment
    group = tl.program_id(0) % groups
    split = tl.program_id(0) // groups
    splits = tl.num_programs(0) // groups
    start = split // tiles * tiles
    _, _, place, in_bounds, in_sum = _tile_of_group(
        start, group, rows, columns, plane, channels, tiles, ROWS, CHANNELS, PIXELS, RUN, ALIGNMENT
    )
    x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    count = _count_of_tile(start, group, rows, plane, tiles, ROWS, CHANNELS, PIXELS, RUN)
    shift = _sum(tl.where(in_sum, x, 0.0), CHANNELS, PIXELS) / count
    shifts = _spread(shift, PIXELS)
    total = tl.zeros((ROWS, CHANNELS * PIXELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS * PIXELS), tl.float32)
    count *= 0
    for index in tl.range(split, tl.cdiv(rows, ROWS) * tiles, splits, num_stages=STAGES):
        _, _, place, in_bounds, in_sum = _tile_of_group(
            index, group, rows, columns, plane, channels, tiles, ROWS, CHANNELS, PIXELS, RUN,
            ALIGNMENT,
        )  # fmt: skip
        x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
        centred = tl.where(in_sum, x - shifts, 0.0)
        total += centred
        squares += centred * centred
        count += _count_of_tile(index, group, rows, plane, tiles, ROWS, CHANNELS, PIXELS, RUN)
    offset = _sum(total, CHANNELS, PIXELS) / tl.maximum(count, 1)
    deviations = _sum(squares, CHANNELS, PIXELS) - offset * offset * count
    channel = group * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    out_ptr = partial_ptr + split * channels + channel
    tl.store(out_ptr, shift, mask=channel < channels)
    tl.store(out_ptr + splits * channels, deviations, mask=channel < channels)
    tl.store(out_ptr + 2 * splits * channels, count.to(tl.float32), mask=channel < channels)
    tl.store(out_ptr + 3 * splits * channels, offset, mask=channel < channels)


@triton.jit
def _tile_of_matrix(
    rows, columns, plane,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Return the positions of the elements in the program's tile of the matrix.

    The first program takes the last tile. The previous pass has read this tile last, so the cache
    may still contain it.

    Returns:
        The rows. The first column. The memory offsets. The mask of valid elements. The channel of
        each run of columns.
    """
    index = tl.num_programs(0) - 1 - tl.program_id(0)
    tiles = tl.cdiv(columns, COLUMNS)
    row = (index // tiles) * tl.full((), ROWS, tl.int64) + tl.arange(0, ROWS)[:, None]
    first = index % tiles * COLUMNS
    column = first + tl.arange(0, COLUMNS)[None, :]
    channel = (first + tl.arange(0, COLUMNS // RUN)[None, :] * RUN) // plane
    return row, first, row * columns + column, (row < rows) & (column < columns), channel


@triton.jit(
    do_not_specialize=["rows", "columns", "channels"], do_not_specialize_on_alignment=["plane"]
)
def _batch_norm_forward_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, mean_ptr, variance_ptr, y_ptr, signs_ptr,
    rows, columns, plane, channels, eps, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr, ALIGNMENT: tl.constexpr,
    TRAINING: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise a tile, add the residual and activate. Store the signs if ``signs_ptr`` is given.

    A sign is the bit that :func:`lightning_kernels._core.activation.passes` returns.
    """
    columns = columns // ALIGNMENT * ALIGNMENT
    row, first, place, in_bounds, channel = _tile_of_matrix(
        rows, columns, plane, ROWS, COLUMNS, RUN
    )
    mean, rstd, weight, bias = _load_parameters(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, channel, channel < channels, channels, eps,
        TRAINING,
    )  # fmt: skip
    x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    normalised = (x - _spread(mean, RUN)) * _spread(rstd, RUN)
    z = normalised * _spread(weight, RUN) + _spread(bias, RUN)
    if residual_ptr is not None:
        z += tl.load(residual_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    if signs_ptr is not None:
        positive = passes(z, ACTIVATION)
        store_signs(signs_ptr, positive, row, first, rows, columns, ROWS, COLUMNS)
    y = activate(z, parameter, ACTIVATION, y_ptr.dtype.element_ty)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit
def _load_gradient(
    grad_ptr, x_ptr, residual_ptr, signs_ptr, row, octet, in_octets, place, in_bounds, columns,
    mean, rstd, weight, bias, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the activation's input, and the normalised x, of a tile."""
    grad = tl.load(grad_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    normalised = (x - mean) * rstd
    if signs_ptr is not None:
        passed = load_signs(signs_ptr, row, octet, in_octets, columns, ROWS, COLUMNS)
        grad = gradient_where_passed(grad, passed, parameter, ACTIVATION)
    elif ACTIVATION is not None:
        z = normalised * weight + bias
        if residual_ptr is not None:
            z += tl.load(residual_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
        grad = activation_gradient(grad, z, parameter, ACTIVATION, grad_ptr.dtype.element_ty)
    return grad, normalised


@triton.jit(
    do_not_specialize=["rows", "columns", "channels", "groups", "tiles"],
    do_not_specialize_on_alignment=["plane"],
)
def _batch_norm_reduce_kernel(
    grad_ptr, x_ptr, residual_ptr, signs_ptr, weight_ptr, bias_ptr, mean_ptr, variance_ptr,
    partial_ptr, rows, columns, plane, channels, groups, tiles, eps, parameter,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    RUN: tl.constexpr, ALIGNMENT: tl.constexpr, STAGES: tl.constexpr,
    TRAINING: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store partial sums per channel: of the gradient, and of the gradient times normalised x."""
    COLUMNS: tl.constexpr = CHANNELS * PIXELS
    columns = columns // ALIGNMENT * ALIGNMENT
    group = tl.program_id(0) % groups
    split = tl.program_id(0) // groups
    splits = tl.num_programs(0) // groups
    channel = group * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    in_channels = channel < channels
    mean, rstd, weight, bias = _load_parameters(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, channel, in_channels, channels, eps, TRAINING
    )
    mean, rstd = _spread(mean, PIXELS), _spread(rstd, PIXELS)
    weight, bias = _spread(weight, PIXELS), _spread(bias, PIXELS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for index in tl.range(split, tl.cdiv(rows, ROWS) * tiles, splits, num_stages=STAGES):
        tile, row, place, in_bounds, in_sum = _tile_of_group(
            index, group, rows, columns, plane, channels, tiles, ROWS, CHANNELS, PIXELS, RUN,
            ALIGNMENT,
        )  # fmt: skip
        column, in_octets, _ = _columns_of_group(
            tl.arange(0, COLUMNS // 8)[None, :] * 8, group, tile, plane, columns, channels,
            CHANNELS, PIXELS, RUN, ALIGNMENT,
        )  # fmt: skip
        if ROWS > 1:
            in_octets &= row < rows
        grad, normalised = _load_gradient(
            grad_ptr, x_ptr, residual_ptr, signs_ptr, row, column // 8, in_octets, place, in_bounds,
            columns, mean, rstd, weight, bias, parameter, ROWS, COLUMNS, ACTIVATION,
        )  # fmt: skip
        grad = tl.where(in_sum, grad, 0.0)
        total += grad
        products += tl.where(in_sum, grad * normalised, 0.0)
    out_ptr = partial_ptr + split * channels + channel
    tl.store(out_ptr, _sum(total, CHANNELS, PIXELS), mask=in_channels)
    tl.store(out_ptr + splits * channels, _sum(products, CHANNELS, PIXELS), mask=in_channels)


@triton.jit(do_not_specialize=["splits"])
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
    grad_bias = tl.sum(total.to(tl.float64), axis=0, keep_dims=True).to(tl.float32)
    grad_weight = tl.sum(products.to(tl.float64), axis=0, keep_dims=True).to(tl.float32)
    tl.store(sums_ptr + channel, grad_bias, mask=in_channels)
    tl.store(sums_ptr + channels + channel, grad_weight, mask=in_channels)
    if grad_weight_ptr is not None:
        grad_weight = grad_weight.to(grad_weight_ptr.dtype.element_ty)
        tl.store(grad_weight_ptr + channel, grad_weight, mask=in_channels)
    if grad_bias_ptr is not None:
        grad_bias = grad_bias.to(grad_bias_ptr.dtype.element_ty)
        tl.store(grad_bias_ptr + channel, grad_bias, mask=in_channels)


@triton.jit(
    do_not_specialize=["rows", "columns", "channels"], do_not_specialize_on_alignment=["plane"]
)
def _batch_norm_backward_kernel(
    grad_ptr, x_ptr, residual_ptr, signs_ptr, weight_ptr, bias_ptr, mean_ptr, variance_ptr,
    sums_ptr, grad_x_ptr, grad_residual_ptr, rows, columns, plane, channels, count, eps, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr, ALIGNMENT: tl.constexpr,
    TRAINING: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store a tile of the gradients of x and of the residual."""
    columns = columns // ALIGNMENT * ALIGNMENT
    row, first, place, in_bounds, channel = _tile_of_matrix(
        rows, columns, plane, ROWS, COLUMNS, RUN
    )
    in_channels = channel < channels
    mean, rstd, weight, bias = _load_parameters(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, channel, in_channels, channels, eps, TRAINING
    )
    scale = _spread(rstd * weight, RUN)
    octet = first // 8 + tl.arange(0, COLUMNS // 8)[None, :]
    in_octets = (row < rows) & (octet * 8 < columns)
    grad, normalised = _load_gradient(
        grad_ptr, x_ptr, residual_ptr, signs_ptr, row, octet, in_octets, place, in_bounds, columns,
        _spread(mean, RUN), _spread(rstd, RUN), _spread(weight, RUN), _spread(bias, RUN), parameter,
        ROWS, COLUMNS, ACTIVATION,
    )  # fmt: skip
    if grad_residual_ptr is not None:
        grad_residual = grad.to(grad_residual_ptr.dtype.element_ty)
        tl.store(grad_residual_ptr + place, grad_residual, mask=in_bounds)
    if grad_x_ptr is not None:
        if TRAINING:
            total = load_or(sums_ptr, channel, in_channels, 0.0) / count
            slope = load_or(sums_ptr + channels, channel, in_channels, 0.0) / count
            grad -= _spread(total, RUN) + normalised * _spread(slope, RUN)
        grad_x = (grad * scale).to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + place, grad_x, mask=in_bounds)
