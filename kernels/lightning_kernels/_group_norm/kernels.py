"""The kernels of group norm's forward pass, and how all kernels walk over a tensor.

A slab is a run of neighbouring channels of one sample. A program walks over the pixels of its slab,
by ``PIECES`` pieces at a time of the shape (``PIXELS``, ``CHANNELS``), in both layouts.

If a slab is made of whole groups, one program normalises it. With ``HELD`` it has all the slab in
registers. Otherwise it walks over the slab twice: first it sums, then it normalises what it reads
again from the cache. If groups are too large for that, or too few to fill the GPU, several programs
(splits) share the pixels of each slab, and each of the two walks is a kernel of its own.

The statistics are the means of all groups, followed by the variances of all groups. Sizes are
numbers, not constants: the kernels are compiled for a few tiles and alignments alone.
"""

from lightning_kernels._core.activation import activate
from lightning_kernels._core.row_tiles import mean_of, no_pieces, reciprocal_sqrt
from lightning_kernels._core.tiles import load_or
from lightning_kernels._core.triton import tl, triton

SIZES = ["all_groups", "groups", "channels", "pixels", "slabs", "width", "group_size", "splits"]
STAGES = tl.constexpr(3)  # a loop loads two tiles ahead


@triton.jit
def _product(a, b):
    """Return ``a * b``, rounded once.

    As a product, the compiler would fuse it with the first addition of a sum over threads. Then
    each thread would round its copy of the sum in another place.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def _over_groups(values, member):
    """Return for each channel the sum over the channels of its group. nan stays in its group."""
    same = member[:, None] == member[None, :]
    return tl.sum(tl.where(same, values[:, None], 0.0), axis=0, keep_dims=True)


@triton.jit
def _mean_of_all(tile, size, eps):
    """Return the sum of a tile over ``size``, and 1/sqrt(mean + eps), of the shape (1, 1)."""
    total = tl.sum(tl.sum(tile, axis=1, keep_dims=True), axis=0, keep_dims=True)
    mean = mean_of(total, size)
    return mean, reciprocal_sqrt(mean + eps)


@triton.jit
def _means(tile, member, is_single, size, eps, SINGLE: tl.constexpr):
    """Return for each channel the mean of a tile over its group, and 1/sqrt(mean + eps), as rows.

    ``size`` is the number of elements of a group. With ``is_single`` all channels are of one group.
    With the constant ``SINGLE`` that is known to the compiler, which then needs fewer registers.
    """
    CHANNELS: tl.constexpr = tile.shape[1]
    if SINGLE:
        mean, root = _mean_of_all(tile, size, eps)
    elif is_single:
        mean, root = _mean_of_all(tile, size, eps)
        mean = tl.broadcast_to(mean, (1, CHANNELS))
        root = tl.broadcast_to(root, (1, CHANNELS))
    else:
        mean = mean_of(_over_groups(tl.sum(tile, axis=0), member), size)
        root = reciprocal_sqrt(mean + eps)
    return mean, root


@triton.jit
def _member(group_size, CHANNELS: tl.constexpr):
    """Return the group of each channel, counted from the first group of a slab of whole groups.

    It is the quotient by the size of a group, in fewer instructions than a division takes.
    """
    return tl.arange(0, CHANNELS) * (65536 // group_size + 1) >> 16


@triton.jit
def _place(
    slab, channels, pixels, slabs, width,
    CHANNELS: tl.constexpr, ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Return where a slab is.

    Returns:
        The sample. The memory offset of the slab. The memory offsets from one pixel to the next,
        and from one channel to the next, in a form that shows the compiler their alignment. The
        channels. The mask of valid channels; the channels of a vector share one comparison.
    """
    sample = (slab // slabs).to(tl.int64)
    local = tl.arange(0, CHANNELS)
    if CHANNELS_LAST:
        channels = channels // ALIGNMENT * ALIGNMENT
        width = width // ALIGNMENT * ALIGNMENT
    else:
        pixels = pixels // ALIGNMENT * ALIGNMENT
    first = slab % slabs * width
    channel = first + local
    if CHANNELS_LAST:
        local = local // ALIGNMENT * ALIGNMENT
    in_channels = local < tl.minimum(width, channels - first)
    pixel_stride = tl.full((), 1, tl.int64)
    channel_stride = tl.full((), 1, tl.int64)
    if CHANNELS_LAST:
        pixel_stride *= channels
        start = sample * pixels * pixel_stride + first
    else:
        channel_stride *= pixels
        start = (sample * channels + first) * pixels
    return sample, start, pixel_stride, channel_stride, channel, in_channels


@triton.jit
def _in_bounds(
    start, pixels, in_channels,
    PIXELS: tl.constexpr, ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Return the mask of the piece that begins at the pixel ``start``."""
    pixel = tl.arange(0, PIXELS)[:, None]
    if not CHANNELS_LAST:
        pixel = pixel // ALIGNMENT * ALIGNMENT
    return (pixel < pixels - start) & in_channels[None, :]


@triton.jit
def _load(
    x_ptr, start, pixels, pixel_stride, in_channels,
    PIXELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Load pieces from the pixel ``start`` on, as a tuple, with 0 out of bounds."""
    tile = no_pieces()
    x_ptr += start * pixel_stride
    for piece in tl.static_range(PIECES):
        mask = _in_bounds(
            start + piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
        )
        tile += (tl.load(x_ptr + piece * PIXELS * pixel_stride, mask=mask, other=0.0),)
    return tile


@triton.jit
def _statistics(
    x_ptr, first, splits, pixels, pixel_stride, in_channels,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Return mean, sum of squared deviations and count, of each place of a piece.

    Each place sums the differences to the first element that it reads, so that the subtraction for
    the squares loses few digits, however large the mean.
    """
    HEIGHT: tl.constexpr = PIXELS * PIECES
    start = first * tl.full((), HEIGHT, tl.int64)
    in_bounds = _in_bounds(start, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST)
    pivot = tl.load(x_ptr + start * pixel_stride, mask=in_bounds, other=0.0).to(tl.float32)
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    squares = tl.zeros((PIXELS, CHANNELS), tl.float32)
    walks = tl.cdiv(pixels, HEIGHT)
    for walk in tl.range(first, walks, splits, num_stages=STAGES):
        start = walk * tl.full((), HEIGHT, tl.int64)
        tile = _load(
            x_ptr, start, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT,
            CHANNELS_LAST,
        )  # fmt: skip
        for piece in tl.static_range(PIECES):
            in_bounds = _in_bounds(
                start + piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
            )
            centred = tl.where(in_bounds, tile[piece].to(tl.float32) - pivot, 0.0)
            total += centred
            squares += centred * centred
    # Only the last walk may have pixels out of bounds.
    visits = tl.cdiv(walks - first, splits)
    left = pixels - (first + (visits - 1) * splits) * tl.full((), HEIGHT, tl.int64)
    left = tl.minimum(left, HEIGHT).to(tl.int32) - tl.arange(0, PIXELS)[:, None]
    count = (visits - 1) * PIECES + tl.maximum(left + PIXELS - 1, 0) // PIXELS
    count = tl.where(in_channels[None, :], count, 0).to(tl.float32)
    share = 1 / tl.maximum(count, 1.0)
    return pivot + total * share, squares - total * total * share, count


@triton.jit
def _normalise(
    x_ptr, y_ptr, first, splits, pixels, pixel_stride, in_channels, mean, scale, bias, parameter,
    PIXELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise and activate. The last pixels are first, since the cache may still contain them."""
    HEIGHT: tl.constexpr = PIXELS * PIECES
    walks = tl.cdiv(pixels, HEIGHT)
    for walk in tl.range(first, walks, splits, num_stages=STAGES):
        start = (walks - 1 - walk) * tl.full((), HEIGHT, tl.int64)
        tile = _load(
            x_ptr, start, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT,
            CHANNELS_LAST,
        )  # fmt: skip
        out_ptr = y_ptr + start * pixel_stride
        for piece in tl.static_range(PIECES):
            in_bounds = _in_bounds(
                start + piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
            )
            z = (tile[piece].to(tl.float32) - mean) * scale + bias
            y = activate(z, parameter, ACTIVATION, y_ptr.dtype.element_ty)
            y = y.to(y_ptr.dtype.element_ty)
            tl.store(out_ptr + piece * PIXELS * pixel_stride, y, mask=in_bounds)


@triton.jit
def _piece(
    x_ptr, pixel_stride, channel_stride,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Return pointers to the elements of a piece. Those of neighbours differ by a 32-bit number."""
    pixel, channel = tl.arange(0, PIXELS)[:, None], tl.arange(0, CHANNELS)[None, :]
    if CHANNELS_LAST:
        pointers = x_ptr + pixel * pixel_stride + channel
    else:
        pointers = x_ptr + channel * channel_stride + pixel
    return pointers


@triton.jit
def _normalise_held(
    tile, y_ptr, pixels, pixel_stride, in_channels, mean, scale, bias, parameter,
    PIXELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise and activate a slab in registers."""
    for piece in tl.static_range(PIECES):
        if piece * PIXELS < pixels:
            in_bounds = _in_bounds(
                piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
            )
            z = (tile[piece].to(tl.float32) - mean) * scale + bias
            y = activate(z, parameter, ACTIVATION, y_ptr.dtype.element_ty)
            y = y.to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + piece * PIXELS * pixel_stride, y, mask=in_bounds)


@triton.jit(do_not_specialize=SIZES)
def _group_norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, size, eps, parameter,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, HELD: tl.constexpr, SINGLE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise and activate a slab of whole groups. Store its statistics."""
    sample, start, pixel_stride, channel_stride, channel, in_channels = _place(
        tl.program_id(0), channels, pixels, slabs, width, CHANNELS, ALIGNMENT, CHANNELS_LAST
    )
    x_ptrs = _piece(x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    y_ptrs = _piece(y_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    bias = load_or(bias_ptr, channel[None, :], in_channels[None, :], 0.0)
    is_single = width <= group_size
    member = _member(group_size, CHANNELS)
    statistics_ptr += sample * groups + tl.program_id(0) % slabs * width // group_size
    if HELD:
        tile = _load(
            x_ptrs, 0, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT,
            CHANNELS_LAST,
        )  # fmt: skip
        total = tl.zeros((PIXELS, CHANNELS), tl.float32)
        for piece in tl.static_range(PIECES):
            total += tile[piece].to(tl.float32)
        mean, _ = _means(total, member, is_single, size, eps, SINGLE)
        squares = tl.zeros((PIXELS, CHANNELS), tl.float32)
        for piece in tl.static_range(PIECES):
            in_bounds = _in_bounds(
                piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
            )
            centred = tl.where(in_bounds, tile[piece].to(tl.float32) - mean, 0.0)
            squares = tl.fma(centred, centred, squares)
    else:
        means, squares, count = _statistics(
            x_ptrs, 0, 1, pixels, pixel_stride, in_channels,
            PIXELS, CHANNELS, PIECES, ALIGNMENT, CHANNELS_LAST,
        )  # fmt: skip
        mean, _ = _means(_product(means, count), member, is_single, size, eps, SINGLE)
        squares += count * (means - mean) * (means - mean)
    variance, scale = _means(squares, member, is_single, size, eps, SINGLE)
    is_first = (in_channels & (tl.arange(0, CHANNELS) == member * group_size))[None, :]
    mean_ptr = statistics_ptr + member[None, :]
    tl.store(mean_ptr, tl.broadcast_to(mean, (1, CHANNELS)), mask=is_first)
    tl.store(mean_ptr + all_groups, tl.broadcast_to(variance, (1, CHANNELS)), mask=is_first)
    scale = scale * load_or(weight_ptr, channel[None, :], in_channels[None, :], 1.0)
    if HELD:
        _normalise_held(
            tile, y_ptrs, pixels, pixel_stride, in_channels, mean, scale, bias, parameter,
            PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
        )  # fmt: skip
    else:
        _normalise(
            x_ptrs, y_ptrs, 0, 1, pixels, pixel_stride, in_channels, mean, scale,
            bias, parameter, PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def _group_norm_statistics_kernel(
    x_ptr, partial_ptr, all_groups, groups, channels, pixels, slabs, width, group_size, splits,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store mean, sum of squared deviations and count of a program's pixels, for each channel."""
    split = tl.program_id(0) % splits
    sample, start, pixel_stride, channel_stride, channel, in_channels = _place(
        tl.program_id(0) // splits, channels, pixels, slabs, width,
        CHANNELS, ALIGNMENT, CHANNELS_LAST,
    )  # fmt: skip
    x_ptrs = _piece(x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    means, squares, count = _statistics(
        x_ptrs, split, splits,
        pixels, pixel_stride, in_channels, PIXELS, CHANNELS, PIECES, ALIGNMENT, CHANNELS_LAST,
    )  # fmt: skip
    counts = tl.sum(count, axis=0, keep_dims=True)
    mean = tl.sum(_product(means, count), axis=0, keep_dims=True) / tl.maximum(counts, 1.0)
    squares += count * (means - mean) * (means - mean)
    channel, in_channels = channel[None, :], in_channels[None, :]
    part = (split * group_size + channel % group_size).to(tl.int64) * 3
    out_ptr = partial_ptr + part * all_groups + sample * groups + channel // group_size
    tl.store(out_ptr, mean, mask=in_channels)
    tl.store(out_ptr + all_groups, tl.sum(squares, axis=0, keep_dims=True), mask=in_channels)
    tl.store(out_ptr + 2 * all_groups, counts, mask=in_channels)


@triton.jit
def _load_statistics(
    statistics_ptr, all_groups, group, in_channels, is_single, eps, SINGLE: tl.constexpr
):  # fmt: skip
    """Return mean and 1/sqrt(variance + eps) of the group of each channel, as rows."""
    CHANNELS: tl.constexpr = group.shape[0]
    first = tl.zeros((1, 1), tl.int32)
    if SINGLE:
        mean = tl.load(statistics_ptr + first)
        rstd = reciprocal_sqrt(tl.load(statistics_ptr + all_groups + first) + eps)
    elif is_single:
        mean = tl.broadcast_to(tl.load(statistics_ptr + first), (1, CHANNELS))
        rstd = reciprocal_sqrt(tl.load(statistics_ptr + all_groups + first) + eps)
        rstd = tl.broadcast_to(rstd, (1, CHANNELS))
    else:
        mean = load_or(statistics_ptr, group[None, :], in_channels[None, :], 0.0)
        variance = load_or(statistics_ptr + all_groups, group[None, :], in_channels[None, :], 1.0)
        rstd = reciprocal_sqrt(variance + eps)
    return mean, rstd


@triton.jit(do_not_specialize=SIZES)
def _group_norm_apply_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, splits, eps, parameter,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise and activate a program's pixels of a slab."""
    sample, start, pixel_stride, channel_stride, channel, in_channels = _place(
        tl.program_id(0) // splits, channels, pixels, slabs, width,
        CHANNELS, ALIGNMENT, CHANNELS_LAST,
    )  # fmt: skip
    x_ptrs = _piece(x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    y_ptrs = _piece(y_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    statistics_ptr += sample * groups
    group = channel // group_size
    mean, scale = _load_statistics(
        statistics_ptr, all_groups, group, in_channels, False, eps, False
    )
    scale *= load_or(weight_ptr, channel[None, :], in_channels[None, :], 1.0)
    bias = load_or(bias_ptr, channel[None, :], in_channels[None, :], 0.0)
    _normalise(
        x_ptrs, y_ptrs, tl.program_id(0) % splits, splits, pixels, pixel_stride,
        in_channels, mean, scale, bias, parameter,
        PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
    )  # fmt: skip
