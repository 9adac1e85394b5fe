"""The kernels of group norm, for both memory layouts.

A slab is one group of a sample, or several neighbouring groups. If a program can hold a whole slab
in registers, one program normalises it as one tile. Otherwise a slab is cut into blocks of
channels, and several programs (splits) share the tiles of a block, which are ranges of its pixels.
A tile has the shape (channels, pixels) in both layouts. The statistics are the means of all groups,
followed by the variances of all groups. ``member`` is the group of each channel, counted from the
first group of the slab.
"""

from lightning_kernels._core.activation import activate, activation_gradient
from lightning_kernels._core.row_tiles import mean_of, reciprocal_sqrt
from lightning_kernels._core.tiles import load_or
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _sum_pixels(tile):
    """Return the sum of a tile for each channel."""
    return tl.sum(tile, axis=1)


@triton.jit
def _product(a, b):
    """Return ``a * b``, rounded once.

    As a product, the compiler would fuse it with the first addition of a sum over threads. Then
    each thread would round its copy of the sum in another place.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def _to_groups(values, member, PADDED: tl.constexpr):
    """Return the sum of the channels' values for each group. nan affects its own group alone."""
    same = tl.arange(0, PADDED)[:, None] == member[None, :]
    return tl.sum(tl.where(same, values[None, :], 0.0), axis=1)


@triton.jit
def _to_channels(values, member, PADDED: tl.constexpr):
    """Return for each channel the value of its group, as a column that broadcasts over a tile."""
    same = member[:, None] == tl.arange(0, PADDED)[None, :]
    return tl.sum(tl.where(same, values[None, :], 0.0), axis=1, keep_dims=True)


@triton.jit
def _place(
    slab, block, slabs, groups, channels, width, group_size,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Return the sample, the channels and the groups of a block of a slab.

    Returns:
        The sample. The channels. The mask of valid channels. The group of each channel, counted
        from the first group of the slab. The slab's groups, counted over all samples. The mask of
        valid groups.
    """
    sample = (slab // slabs).to(tl.int64)
    local = block * CHANNELS + tl.arange(0, CHANNELS)
    channel = slab % slabs * width + local
    number = tl.arange(0, PADDED)
    group = slab % slabs * GROUPS + number
    in_groups = (number < GROUPS) & (group < groups)
    in_channels = (local < width) & (channel < channels)
    return sample, channel, in_channels, local // group_size, sample * groups + group, in_groups


@triton.jit
def _tile(
    index, sample, channel, in_channels, channels, pixels,
    PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Return the memory offsets and the bounds mask of tile ``index`` of a block."""
    pixel = index * tl.full((), PIXELS, tl.int64) + tl.arange(0, PIXELS)[None, :]
    if CHANNELS_LAST:
        place = (sample * pixels + pixel) * channels + channel[:, None]
    else:
        place = (sample * channels + channel[:, None]) * pixels + pixel
    return place, in_channels[:, None] & (pixel < pixels)


@triton.jit
def _aligned(channels, pixels, width, ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return the extents unchanged, in a form that shows the compiler their alignment.

    The strides are computed from these extents.
    """
    if CHANNELS_LAST:
        channels = channels // ALIGNMENT * ALIGNMENT
        width = width // ALIGNMENT * ALIGNMENT
    else:
        pixels = pixels // ALIGNMENT * ALIGNMENT
    return channels, pixels, width


@triton.jit(do_not_specialize=["all_groups", "pixels", "slabs"])
def _group_norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, all_groups, groups, channels, pixels, slabs,
    width, group_size, size, eps, parameter,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise and activate a slab, which the program holds in registers. Store its statistics."""
    channels, pixels, width = _aligned(channels, pixels, width, ALIGNMENT, CHANNELS_LAST)
    sample, channel, in_channels, member, group, in_groups = _place(
        tl.program_id(0), 0, slabs, groups, channels, width, group_size, GROUPS, PADDED, CHANNELS
    )
    place, in_bounds = _tile(
        0, sample, channel, in_channels, channels, pixels, PIXELS, CHANNELS_LAST
    )
    x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    mean = _to_groups(_sum_pixels(x), member, PADDED) / size
    x = tl.where(in_bounds, x - _to_channels(mean, member, PADDED), 0.0)
    variance = mean_of(_to_groups(_sum_pixels(_product(x, x)), member, PADDED), size)
    tl.store(statistics_ptr + group, mean, mask=in_groups)
    tl.store(statistics_ptr + all_groups + group, variance, mask=in_groups)
    rstd = _to_channels(reciprocal_sqrt(variance + eps), member, PADDED)
    channel, in_channels = channel[:, None], in_channels[:, None]
    weight = load_or(weight_ptr, channel, in_channels, 1.0)
    z = x * rstd * weight + load_or(bias_ptr, channel, in_channels, 0.0)
    y = activate(z, parameter, ACTIVATION, y_ptr.dtype.element_ty)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit(do_not_specialize=["all_groups", "pixels", "slabs", "blocks", "splits"])
def _group_norm_statistics_kernel(
    x_ptr, partial_ptr, all_groups, groups, channels, pixels, slabs, width, group_size,
    blocks, splits,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store mean, sum of squared deviations and count of a program's part of each group.

    The kernel sums differences to the mean of the program's first tile, so that the subtraction for
    the variance loses few digits, however large the mean.
    """
    channels, pixels, width = _aligned(channels, pixels, width, ALIGNMENT, CHANNELS_LAST)
    parts = blocks * splits
    part = tl.program_id(0) % parts
    split = part % splits
    sample, channel, in_channels, member, group, in_groups = _place(
        tl.program_id(0) // parts, part // splits, slabs, groups, channels, width, group_size,
        GROUPS, PADDED, CHANNELS,
    )  # fmt: skip
    held = _to_groups(in_channels.to(tl.float32), member, PADDED)  # channels of each group
    held = tl.where(held > 0, held, 1.0)
    place, in_bounds = _tile(
        split, sample, channel, in_channels, channels, pixels, PIXELS, CHANNELS_LAST
    )
    x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    count = tl.minimum(pixels - split * PIXELS, PIXELS)
    shift = _to_groups(_sum_pixels(x), member, PADDED) / (held * count)
    shifts = _to_channels(shift, member, PADDED)
    centred = tl.where(in_bounds, x - shifts, 0.0)
    total, squares = centred, centred * centred
    for index in range(split + splits, tl.cdiv(pixels, PIXELS), splits):
        place, in_bounds = _tile(
            index, sample, channel, in_channels, channels, pixels, PIXELS, CHANNELS_LAST
        )
        x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
        centred = tl.where(in_bounds, x - shifts, 0.0)
        total += centred
        squares += centred * centred
        count += tl.minimum(pixels - index * PIXELS, PIXELS)
    counts = held * count
    offset = _to_groups(_sum_pixels(total), member, PADDED) / counts
    deviations = _to_groups(_sum_pixels(squares), member, PADDED)
    deviations -= offset * offset * counts
    out_ptr = partial_ptr + part.to(tl.int64) * 3 * all_groups + group
    tl.store(out_ptr, shift + offset, mask=in_groups)
    tl.store(out_ptr + all_groups, deviations, mask=in_groups)
    tl.store(out_ptr + 2 * all_groups, counts, mask=in_groups)


@triton.jit(do_not_specialize=["all_groups", "pixels", "slabs", "blocks"])
def _group_norm_apply_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, all_groups, groups, channels, pixels, slabs,
    width, group_size, blocks, eps, parameter,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise and activate a tile.

    The first program takes the last tile. The previous kernel has read this tile last, so the cache
    may still contain it.
    """
    channels, pixels, width = _aligned(channels, pixels, width, ALIGNMENT, CHANNELS_LAST)
    index = tl.num_programs(0) - 1 - tl.program_id(0)
    tiles = tl.cdiv(pixels, PIXELS)
    sample, channel, in_channels, member, group, in_groups = _place(
        index // (tiles * blocks), index // tiles % blocks, slabs, groups, channels, width,
        group_size, GROUPS, PADDED, CHANNELS,
    )  # fmt: skip
    place, in_bounds = _tile(
        index % tiles, sample, channel, in_channels, channels, pixels, PIXELS, CHANNELS_LAST
    )
    mean, rstd = _load_statistics(statistics_ptr, all_groups, group, in_groups, member, eps, PADDED)
    channel, in_channels = channel[:, None], in_channels[:, None]
    weight = load_or(weight_ptr, channel, in_channels, 1.0)
    bias = load_or(bias_ptr, channel, in_channels, 0.0)
    x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    z = (x - mean) * rstd * weight + bias
    y = activate(z, parameter, ACTIVATION, y_ptr.dtype.element_ty)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit
def _load_statistics(
    statistics_ptr, all_groups, group, in_groups, member, eps, PADDED: tl.constexpr
):  # fmt: skip
    """Return mean and 1/sqrt(variance + eps) of the group of each channel, as columns."""
    mean = tl.load(statistics_ptr + group, mask=in_groups, other=0.0)
    variance = tl.load(statistics_ptr + all_groups + group, mask=in_groups, other=1.0)
    return (
        _to_channels(mean, member, PADDED),
        _to_channels(reciprocal_sqrt(variance + eps), member, PADDED),
    )


@triton.jit
def _load_gradient(
    grad_ptr, x_ptr, place, in_bounds, mean, rstd, weight, bias, parameter,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the activation's input, and the normalised x; both 0 out of bounds."""
    grad = tl.load(grad_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    normalised = tl.where(in_bounds, (x - mean) * rstd, 0.0)
    if ACTIVATION is not None:
        z = normalised * weight + bias
        grad = activation_gradient(grad, z, parameter, ACTIVATION, grad_ptr.dtype.element_ty)
    return grad, normalised


@triton.jit(do_not_specialize=["all_groups", "pixels", "slabs", "partial_stride"])
def _group_norm_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, statistics_ptr, grad_x_ptr, partial_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, size, partial_stride,
    eps, parameter,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store the gradient of a slab of x, and partial sums of the gradients of weight and bias.

    The program holds the slab and its gradient in registers, and reads them once.
    """
    channels, pixels, width = _aligned(channels, pixels, width, ALIGNMENT, CHANNELS_LAST)
    sample, channel, in_channels, member, group, in_groups = _place(
        tl.program_id(0), 0, slabs, groups, channels, width, group_size, GROUPS, PADDED, CHANNELS
    )
    place, in_bounds = _tile(
        0, sample, channel, in_channels, channels, pixels, PIXELS, CHANNELS_LAST
    )
    mean, rstd = _load_statistics(statistics_ptr, all_groups, group, in_groups, member, eps, PADDED)
    own, own_mask = channel[:, None], in_channels[:, None]
    weight = load_or(weight_ptr, own, own_mask, 1.0)
    bias = load_or(bias_ptr, own, own_mask, 0.0)
    grad, normalised = _load_gradient(
        grad_ptr, x_ptr, place, in_bounds, mean, rstd, weight, bias, parameter, ACTIVATION
    )
    total = _sum_pixels(grad)
    products = _sum_pixels(_product(grad, normalised))
    if partial_ptr is not None:
        out_ptr = partial_ptr + sample * channels + channel
        tl.store(out_ptr, products, mask=in_channels)
        tl.store(out_ptr + partial_stride, total, mask=in_channels)
    if grad_x_ptr is not None:
        scale = load_or(weight_ptr, channel, in_channels, 1.0)
        total = _to_groups(_product(total, scale), member, PADDED) / size
        products = _to_groups(_product(products, scale), member, PADDED) / size
        grad = grad * weight - _to_channels(total, member, PADDED)
        grad -= normalised * _to_channels(products, member, PADDED)
        tl.store(grad_x_ptr + place, (grad * rstd).to(grad_x_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit(
    do_not_specialize=["all_groups", "pixels", "slabs", "blocks", "splits", "partial_stride"]
)
def _group_norm_reduce_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, statistics_ptr, partial_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, blocks, splits,
    partial_stride, eps, parameter,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store partial sums per channel: of the gradient, and of the gradient times normalised x."""
    channels, pixels, width = _aligned(channels, pixels, width, ALIGNMENT, CHANNELS_LAST)
    parts = blocks * splits
    part = tl.program_id(0) % parts
    split = part % splits
    sample, channel, in_channels, member, group, in_groups = _place(
        tl.program_id(0) // parts, part // splits, slabs, groups, channels, width, group_size,
        GROUPS, PADDED, CHANNELS,
    )  # fmt: skip
    mean, rstd = _load_statistics(statistics_ptr, all_groups, group, in_groups, member, eps, PADDED)
    own, own_mask = channel[:, None], in_channels[:, None]
    weight = load_or(weight_ptr, own, own_mask, 1.0)
    bias = load_or(bias_ptr, own, own_mask, 0.0)
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    products = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for index in range(split, tl.cdiv(pixels, PIXELS), splits):
        place, in_bounds = _tile(
            index, sample, channel, in_channels, channels, pixels, PIXELS, CHANNELS_LAST
        )
        grad, normalised = _load_gradient(
            grad_ptr, x_ptr, place, in_bounds, mean, rstd, weight, bias, parameter, ACTIVATION
        )
        total += grad
        products += grad * normalised
    out_ptr = partial_ptr + (sample * splits + split) * channels + channel
    tl.store(out_ptr, _sum_pixels(products), mask=in_channels)
    out_ptr += partial_stride
    tl.store(out_ptr, _sum_pixels(total), mask=in_channels)


@triton.jit(do_not_specialize=["all_groups", "slabs", "splits", "partial_stride"])
def _group_norm_sum_kernel(
    partial_ptr, weight_ptr, sums_ptr, all_groups, groups, channels, slabs, width, group_size, size,
    splits, partial_stride,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Merge the partial sums of channels, times the weights, to two means per group of a slab."""
    split = tl.arange(0, SPLITS)[:, None]
    products = tl.zeros((PADDED,), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    for block in range(0, tl.cdiv(width, CHANNELS)):
        sample, channel, in_channels, member, group, in_groups = _place(
            tl.program_id(0), block, slabs, groups, channels, width, group_size,
            GROUPS, PADDED, CHANNELS,
        )  # fmt: skip
        weight = load_or(weight_ptr, channel, in_channels, 1.0)
        for first in range(0, splits, SPLITS):
            in_bounds = (first + split < splits) & in_channels[None, :]
            in_ptr = partial_ptr + (sample * splits + first + split) * channels + channel[None, :]
            share = tl.sum(tl.load(in_ptr, mask=in_bounds, other=0.0), axis=0)
            products += _to_groups(_product(share, weight), member, PADDED)
            in_ptr += partial_stride
            share = tl.sum(tl.load(in_ptr, mask=in_bounds, other=0.0), axis=0)
            total += _to_groups(_product(share, weight), member, PADDED)
    number = tl.arange(0, PADDED)
    group = tl.program_id(0) % slabs * GROUPS + number
    in_groups = (number < GROUPS) & (group < groups)
    out_ptr = sums_ptr + (tl.program_id(0) // slabs).to(tl.int64) * groups + group
    tl.store(out_ptr, products / size, mask=in_groups)
    tl.store(out_ptr + all_groups, total / size, mask=in_groups)


@triton.jit(do_not_specialize=["all_groups", "pixels", "slabs", "blocks"])
def _group_norm_apply_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, statistics_ptr, sums_ptr, grad_x_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, blocks, eps, parameter,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store a tile of the gradient of x.

    The first program takes the last tile. The previous kernel has read this tile last, so the cache
    may still contain it.
    """
    channels, pixels, width = _aligned(channels, pixels, width, ALIGNMENT, CHANNELS_LAST)
    index = tl.num_programs(0) - 1 - tl.program_id(0)
    tiles = tl.cdiv(pixels, PIXELS)
    sample, channel, in_channels, member, group, in_groups = _place(
        index // (tiles * blocks), index // tiles % blocks, slabs, groups, channels, width,
        group_size, GROUPS, PADDED, CHANNELS,
    )  # fmt: skip
    place, in_bounds = _tile(
        index % tiles, sample, channel, in_channels, channels, pixels, PIXELS, CHANNELS_LAST
    )
    mean, rstd = _load_statistics(statistics_ptr, all_groups, group, in_groups, member, eps, PADDED)
    channel, in_channels = channel[:, None], in_channels[:, None]
    weight = load_or(weight_ptr, channel, in_channels, 1.0)
    bias = load_or(bias_ptr, channel, in_channels, 0.0)
    grad, normalised = _load_gradient(
        grad_ptr, x_ptr, place, in_bounds, mean, rstd, weight, bias, parameter, ACTIVATION
    )
    products = tl.load(sums_ptr + group, mask=in_groups, other=0.0)
    total = tl.load(sums_ptr + all_groups + group, mask=in_groups, other=0.0)
    grad = grad * weight - _to_channels(total, member, PADDED)
    grad -= normalised * _to_channels(products, member, PADDED)
    tl.store(grad_x_ptr + place, (grad * rstd).to(grad_x_ptr.dtype.element_ty), mask=in_bounds)
