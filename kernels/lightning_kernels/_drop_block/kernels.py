"""The kernels of DropBlock, for both memory layouts.

A plane is one channel of one sample, or one sample if its channels share a mask. It has ``depth`` x
``height`` rows of ``width`` elements. For a map in two dimensions, ``depth`` is the height of the
map and ``height`` is 1.

The mask has one bit per element, 1 for a dropped element. The bits of a row are packed into
``pieces`` words, of ``piece`` bits each (the last word has the rest). In the contiguous layout the
words of a plane are neighbours in memory. In channels last the words of all channels at the same
place are neighbours.

A seed is a position of a plane whose block is dropped. It is the corner of the block with the
smallest indices.
"""

from lightning_kernels._core.random import random_words
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _exponential(p, rest):
    """Return -log(1 - p). ``rest`` is 1 - p without rounding error.

    For p < 0.5 a series computes the logarithm, because 1 - p would lose the digits of a small p.
    """
    z = p / (2 - p)
    square = z * z
    series = 1 / 9 + square * (1 / 11 + square * (1 / 13))
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * series))
    return tl.where(p < 0.5, 2 * z * (1 + square * series), -tl.log(rest))


@triton.jit
def _ones(count, limit):
    """Return a word whose lowest ``count`` bits are set.

    ``count`` is first clamped between 0 and ``limit``, which is at most 32.
    """
    count = tl.maximum(tl.minimum(count, limit), 0)
    return tl.where(count < 32, (1 << (count & 31)) - 1, -1)


@triton.jit
def _bits_set(word):
    """Return the number of set bits of each word. Compilers recognise this pattern."""
    word = word.to(tl.uint32, bitcast=True)
    word -= (word >> 1) & 0x55555555
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _gap(state_ptr, seed, offset, first_group, mean_gap, limit, PLANES: tl.constexpr):
    """Draw for each plane the number of positions before the next seed, at most ``limit``."""
    word = random_words(state_ptr, seed, offset, first_group, PLANES)
    p = word.to(tl.float32) * 2.0**-32 + 2.0**-33
    rest = (word ^ 0xFFFFFFFF).to(tl.float32) * 2.0**-32 + 2.0**-33
    return tl.minimum(_exponential(p, rest) * mean_gap, limit.to(tl.float32)).to(tl.int32)


@triton.jit
def _blocks(
    position, count, first_seed_row, row, depth, height, width, piece,
    block_depth, block_height, block_width, PIECES: tl.constexpr,
):  # fmt: skip
    """Return for each plane the mask words of one block, whose first corner is at ``position``.

    ``position`` counts the possible seeds from row ``first_seed_row`` on. A plane whose
    ``position`` is ``count`` or more has no further seed, so its words are 0.
    """
    columns = width - block_width + 1
    seed_height = height - block_height + 1
    seed_row = first_seed_row + position // columns
    top, above = (seed_row // seed_height)[:, None], (seed_row % seed_height)[:, None]
    z, y = (row // height)[None, :], (row % height)[None, :]
    hit = (z >= top) & (z < top + block_depth) & (y >= above) & (y < above + block_height)
    first = tl.arange(0, PIECES)[None, :] * piece
    start = (position % columns)[:, None] - first
    run = _ones(start + block_width, piece) & ~_ones(start, piece)
    run = tl.where((position < count)[:, None], run, 0)
    return tl.where(hit[:, :, None], run[:, None, :], 0)


@triton.jit
def _dropped_words(
    first_plane, first_row, state_ptr, seed, offset, mean_gap, planes, depth, height, width, piece,
    block_depth, block_height, block_width,
    PLANES: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Return the words of a tile of the mask, (PLANES, ROWS, PIECES).

    The tile contains the blocks of all seeds that reach it. Seeds are drawn in segments: ROWS rows
    of positions in one plane, which are a sequence of independent trials. The gap between two seeds
    has a geometric distribution: it is an exponential variable of rate -log(1 - gamma), rounded
    down. In the random stream, draw k of all segments precedes draw k + 1 of every segment, so that
    four neighbouring planes share each Philox call.
    """
    row = first_row + tl.arange(0, ROWS)
    seed_depth = depth - block_depth + 1
    seed_height = height - block_height + 1
    seed_rows = seed_depth * seed_height
    last = tl.minimum(first_row + ROWS, depth * height) - 1
    first_seed_row = tl.maximum(first_row // height - block_depth + 1, 0) * seed_height
    end = tl.minimum(last // height + 1, seed_depth) * seed_height
    segments, groups = tl.cdiv(seed_rows, ROWS), tl.cdiv(planes, 4)
    exists = first_plane + tl.arange(0, PLANES) < planes
    words = tl.zeros((PLANES, ROWS, PIECES), tl.int32)
    for segment in range(first_seed_row // ROWS, tl.cdiv(end, ROWS)):
        count = tl.minimum(seed_rows - segment * ROWS, ROWS) * (width - block_width + 1)
        group = first_plane // 4 + segment * groups.to(tl.int64)
        position = _gap(state_ptr, seed, offset, group, mean_gap, count, PLANES)
        position = tl.where(exists, position, count)
        while tl.min(position) < count:
            words |= _blocks(
                position, count, segment * ROWS, row, depth, height, width, piece,
                block_depth, block_height, block_width, PIECES,
            )  # fmt: skip
            group += segments * groups.to(tl.int64)
            position += 1 + _gap(state_ptr, seed, offset, group, mean_gap, count, PLANES)
    return words


@triton.jit(do_not_specialize=["seed", "offset"])
def _drop_block_mask_kernel(
    words_ptr,
    counts_ptr,
    rate_ptr,
    state_ptr,
    mean_gap,
    ratio,
    seed: tl.uint64,
    offset: tl.uint64,
    planes,
    channels,
    depth,
    height,
    width,
    block_depth,
    block_height,
    block_width,
    pieces,
    piece,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Draw seeds and set the bits of their blocks. Store the bits, and per program their number.

    ``mean_gap`` is 1 / -log(1 - gamma). If the rate is in memory (``rate_ptr``), gamma is ``ratio``
    times the rate, and the kernel computes ``mean_gap`` from it.
    """
    if rate_ptr is not None:
        gamma = tl.minimum(tl.load(rate_ptr) * ratio, 1.0)
        mean_gap = 1 / _exponential(gamma, 1 - gamma)
    rows = depth * height
    chunks = tl.cdiv(rows, ROWS)
    plane = tl.arange(0, PLANES)
    piece_index = tl.arange(0, PIECES)[None, None, :]
    dropped = tl.zeros((), tl.int32)
    for tile in range(tl.program_id(0), tl.cdiv(planes, PLANES) * chunks, tl.num_programs(0)):
        first_plane = (tile // chunks) * tl.full((), PLANES, tl.int64)
        first_row = tile % chunks * ROWS
        words = _dropped_words(
            first_plane, first_row, state_ptr, seed, offset, mean_gap, planes, depth, height, width,
            piece, block_depth, block_height, block_width, PLANES, ROWS, PIECES,
        )  # fmt: skip
        dropped += tl.sum(tl.reshape(_bits_set(words), (PLANES * ROWS * PIECES,)))
        row = (first_row + tl.arange(0, ROWS))[None, :, None]
        place = row * pieces + piece_index
        if CHANNELS_LAST:
            sample = first_plane // channels
            channel = (first_plane - sample * channels).to(tl.int32) + plane
            first = (sample + channel // channels) * rows * pieces * channels + channel % channels
            place *= channels
        else:
            first = (first_plane + plane) * rows * pieces
        in_bounds = (first_plane + plane < planes)[:, None, None] & (row < rows)
        in_bounds &= piece_index < pieces
        words = words.to(words_ptr.dtype.element_ty)
        tl.store(words_ptr + first[:, None, None] + place, words, mask=in_bounds)
    tl.store(counts_ptr + tl.program_id(0), dropped)


@triton.jit
def _flat_tile(
    words_ptr, numel, channels, rows, width, pieces, piece,
    BLOCK_SIZE: tl.constexpr, SPAN: tl.constexpr, PIECES: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Return memory offsets, bounds and mask bits of a tile of a contiguous tensor.

    The results have the shape (BLOCK_SIZE / 8, 8). The bits of eight neighbouring elements are in
    at most SPAN words, which are neighbours in memory.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_SIZE
    first_row = start // width
    octet = tl.arange(0, BLOCK_SIZE // 8) * 8
    column = (start - first_row * width).to(tl.int32) + octet
    row = column // width
    column -= row * width
    number = column // piece if PIECES > 1 else column * 0  # index of the word in its row
    column -= number * piece
    first = first_row * pieces
    per_plane = rows * pieces
    per_sample = channels * per_plane
    sample = first // per_sample
    index = row * pieces + number
    bits = tl.zeros((BLOCK_SIZE // 8,), tl.uint32)
    taken = -column  # number of the eight bits that earlier words contain
    for i in tl.static_range(SPAN):
        in_bounds = first + index + i < numel // width * pieces
        if SHARED:
            inside = (first - sample * per_sample).to(tl.int32) + index + i
            where = (sample + inside // per_sample) * per_plane + inside % per_plane
        else:
            where = first + index + i
        # Loads of int16 words extend the sign. Bit 15 is set only in rows of 16 elements, where the
        # eight bits of interest lie below the extended sign.
        word = tl.load(words_ptr + where, mask=in_bounds, other=0).to(tl.uint32)
        if i == 0:
            bits |= word >> column.to(tl.uint32)
        else:
            bits |= word << tl.minimum(taken, 31).to(tl.uint32)
        taken += tl.minimum(width - (number + i) % pieces * piece, piece)
    place = start + octet[:, None] + tl.arange(0, 8)[None, :]
    return place, place < numel, (bits[:, None] >> tl.arange(0, 8)[None, :].to(tl.uint32)) & 1


@triton.jit
def _channels_last_tile(
    words_ptr, channels, width, pieces, piece,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ALIGNMENT: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Return memory offsets, bounds and mask bits of a tile of a channels-last tensor.

    The results have the shape (PIXELS, CHANNELS). The pixels are those of one word of each channel.
    """
    channels = channels // ALIGNMENT * ALIGNMENT  # unchanged: shows the compiler the alignment
    slabs = tl.cdiv(channels, CHANNELS)
    index = (tl.program_id(0) // slabs).to(tl.int64)
    channel = (tl.program_id(0) % slabs * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    in_channels = channel < channels
    if SHARED:
        word = tl.load(words_ptr + index + channel * 0, mask=in_channels, other=0)
    else:
        word = tl.load(words_ptr + index * channels + channel, mask=in_channels, other=0)
    pixel = tl.arange(0, PIXELS)[:, None]
    first = (index % pieces).to(tl.int32) * piece
    length = tl.minimum(width - first, piece)
    place = (index // pieces * width + first + pixel) * channels + channel
    return place, (pixel < length) & in_channels, (word.to(tl.uint32) >> pixel.to(tl.uint32)) & 1


@triton.jit
def _drop_block_apply_kernel(
    x_ptr,
    y_ptr,
    words_ptr,
    counts_ptr,
    counts,
    total,
    eps,
    numel,
    channels,
    rows,
    width,
    pieces,
    piece,
    COUNTS: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    PIECES: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    SHARED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Store ``x`` times 0 where its mask bit is set, else times ``total / (eps + kept)``.

    ``total`` is the number of elements of the mask, and ``kept`` the number of bits that are 0.
    """
    if CHANNELS_LAST:
        place, in_bounds, dropped = _channels_last_tile(
            words_ptr, channels, width, pieces, piece, TILE[0], TILE[1], ALIGNMENT, SHARED
        )
    else:
        place, in_bounds, dropped = _flat_tile(
            words_ptr, numel, channels, rows, width, pieces, piece,
            TILE[0] * TILE[1], SPAN, PIECES, SHARED,
        )  # fmt: skip
    x = tl.load(x_ptr + place, mask=in_bounds).to(tl.float32)
    program = tl.arange(0, COUNTS)
    count = tl.load(counts_ptr + program, mask=program < counts, other=0)
    kept = (total - tl.sum(count.to(tl.int64))).to(tl.float64)
    scale = tl.where(kept > 0, total / (eps + kept), 0.0).to(tl.float32)
    y = x * tl.where(dropped != 0, 0.0, scale)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)
