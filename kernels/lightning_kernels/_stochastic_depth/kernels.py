"""The kernels of stochastic depth. The tensor is a matrix, in which each sample has several rows.

With ``CHANNELS_LAST`` the channels are the columns. Otherwise row ``r`` belongs to channel
``r % channels``.
"""

from lightning_kernels._core.random import random_word_at
from lightning_kernels._core.rate import load_rate
from lightning_kernels._core.tiles import place_of_tile
from lightning_kernels._core.triton import tl, triton


@triton.jit
def _survivors(
    row, rows_per_sample, threshold, scale, rate_ptr, state_ptr, seed, offset, DROPS: tl.constexpr
):
    """Return the mask of rows that keep the branch, and the factor of the branch in these rows."""
    kept = row >= 0
    if DROPS:
        threshold, scale = load_rate(rate_ptr, threshold, scale)
        word = random_word_at(state_ptr, seed, offset, row // rows_per_sample)
        kept = word >= threshold
    return kept, scale


@triton.jit(do_not_specialize=["threshold", "seed", "offset"])
def _stochastic_depth_kernel(
    x_ptr, residual_ptr, layer_scale_ptr, y_ptr, rows, columns, rows_per_sample, channels,
    threshold: tl.uint32, scale, rate_ptr, state_ptr, seed: tl.uint64, offset: tl.uint64,
    DROPS: tl.constexpr, SKIPS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Store ``residual + layer_scale * scale * x``, without the second term in dropped rows.

    With ``SKIPS`` the kernel does not read ``x`` in dropped rows.
    """
    columns = columns // ALIGNMENT * ALIGNMENT  # unchanged: shows the compiler the alignment
    column_tiles = tl.cdiv(columns, COLUMNS)
    row, column, in_bounds, place = place_of_tile(
        tl.program_id(0) // column_tiles, tl.program_id(0) % column_tiles,
        rows, columns, ROWS, COLUMNS,
    )  # fmt: skip
    kept, scale = _survivors(
        row, rows_per_sample, threshold, scale, rate_ptr, state_ptr, seed, offset, DROPS
    )
    if layer_scale_ptr is not None:
        channel = column if CHANNELS_LAST else row % channels
        scale *= tl.load(layer_scale_ptr + channel, mask=channel < channels, other=0.0).to(
            tl.float32
        )
    read = in_bounds & kept if SKIPS else in_bounds
    x = tl.load(x_ptr + place, mask=read, other=0.0).to(tl.float32)
    y = x * tl.where(kept, scale, 0.0)  # a dropped nan stays nan without SKIPS
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=in_bounds, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit(do_not_specialize=["threshold", "seed", "offset"])
def _stochastic_depth_backward_kernel(
    grad_ptr, x_ptr, layer_scale_ptr, grad_x_ptr, partial_ptr, rows, columns, rows_per_sample,
    channels, groups, threshold: tl.uint32, scale, rate_ptr, state_ptr, seed: tl.uint64,
    offset: tl.uint64, DROPS: tl.constexpr, SKIPS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ONE_SAMPLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Store the gradient of x, and partial sums of the layer scale's gradient per channel.

    A program sums over a part of the tiles of one group. A group is a range of channels:
    ``COLUMNS`` channels with ``CHANNELS_LAST``, else ``ROWS`` channels. With ``ONE_SAMPLE`` all
    rows of a tile belong to one sample, so that each thread draws once per tile.
    """
    columns = columns // ALIGNMENT * ALIGNMENT
    group = tl.program_id(0) % groups
    split = tl.program_id(0) // groups
    splits = tl.num_programs(0) // groups
    column_tiles = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) if CHANNELS_LAST else rows // channels * column_tiles
    if CHANNELS_LAST:
        channel = group * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    else:
        channel = group * ROWS + tl.arange(0, ROWS)[:, None]
    in_channels = channel < channels
    layer_scale = tl.load(layer_scale_ptr + channel, mask=in_channels, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for index in range(split, tiles, splits):
        if CHANNELS_LAST:
            row, _, in_bounds, place = place_of_tile(index, group, rows, columns, ROWS, COLUMNS)
        else:
            row, _, in_bounds, place = place_of_tile(
                group, index % column_tiles, channels, columns, ROWS, COLUMNS
            )
            first = (index // column_tiles).to(tl.int64) * channels
            row = tl.full((1, 1), 0, tl.int64) + first if ONE_SAMPLE else row + first
            place += first * columns
        kept, factor = _survivors(
            row, rows_per_sample, threshold, scale, rate_ptr, state_ptr, seed, offset, DROPS
        )
        read = in_bounds & kept if SKIPS else in_bounds
        grad = tl.load(grad_ptr + place, mask=read, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + place, mask=read, other=0.0).to(tl.float32)
        grad *= tl.where(kept, factor, 0.0)
        total += grad * x
        if grad_x_ptr is not None:
            grad *= layer_scale
            if SKIPS:
                grad = tl.where(kept, grad, 0.0)
            tl.store(grad_x_ptr + place, grad.to(grad_x_ptr.dtype.element_ty), mask=in_bounds)
    sums = tl.sum(total, axis=0 if CHANNELS_LAST else 1, keep_dims=True)
    tl.store(partial_ptr + split * channels + channel, sums, mask=in_channels)
