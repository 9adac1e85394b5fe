"""How DropBlock packs its mask into words, cuts the work into programs, and computes gamma."""

import functools
import math
from typing import Any, NamedTuple

from lightning_kernels._core.launch import cdiv, next_power_of_2

_WORDS = 2048  # words in a tile of the mask: sixteen per thread
_MOST_WORDS = 512  # words per plane in a tile; so at least four planes share Philox calls
# Most seeds per tile, on the assumption that the blocks cover the tile once. Tiles get fewer rows
# until the number of seeds is at most this.
_SEEDS = 32
# Bytes of a tile when the mask is applied. Each program also reads the counts of all programs that
# draw the mask, so its tile is large compared with these counts.
_TILE_BYTES = 16384
_LARGEST_FLOAT = 3e38  # just below the largest float32

Sizes = tuple[int, ...]


class Cut(NamedTuple):
    """The sizes of words and tiles. :mod:`lightning_kernels._drop_block.kernels` defines the terms.

    Attributes:
        volume: Depth, height and width of a plane, then of a block.
        pieces: Number of words per row, and number of bits per word.
        mask_tile: Constants of the kernel that draws the mask. Its ``ROWS`` determine which random
            words a plane gets, so they depend on the sizes of map and block alone.
        flat_tile: Constants of the kernel that applies the mask to a contiguous tensor.
        last_tile: Constants of the kernel that applies the mask to a channels-last tensor.
    """

    volume: tuple[int, ...]
    pieces: tuple[int, int]
    mask_tile: dict[str, int]
    flat_tile: dict[str, Any]
    last_tile: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def cut_of(channels: int, sizes: Sizes, block: Sizes, itemsize: int) -> Cut:
    """Return the sizes of words and tiles for maps of ``sizes`` with blocks of ``block``."""
    (depth, height, width), edges = _in_three(sizes), _in_three(block)
    pieces, piece = pieces_of(width)
    padded = next_power_of_2(pieces)
    rows = min(next_power_of_2(depth * height), max(1, _MOST_WORDS // padded))
    while rows > 1 and _seeds_near(rows, (depth, height, width), edges) > _SEEDS:
        rows //= 2
    pixels = next_power_of_2(piece)
    tile = _TILE_BYTES // itemsize
    slab = min(next_power_of_2(channels), tile // pixels)
    # 168 registers allow three programs per multiprocessor. Without this limit the compiler spills
    # registers to fit a fourth program.
    mask = {"PLANES": max(4, _WORDS // (rows * padded)), "ROWS": rows, "maxnreg": 168}
    common = {"PIECES": padded, "num_warps": 4}
    flat = {"TILE": (tile, 1), "SPAN": _span(width, pieces, piece), "ALIGNMENT": 1}
    last = {"TILE": (pixels, slab), "SPAN": 1, "ALIGNMENT": min(channels & -channels, 16)}
    return Cut(
        volume=(depth, height, width, *edges),
        pieces=(pieces, piece),
        mask_tile={**mask, **common},
        flat_tile={**flat, **common},
        last_tile={**last, **common},
    )


def _in_three(sizes: Sizes) -> tuple[int, int, int]:
    """Return depth, height and width. The (H, W) of a map in two dimensions become (H, 1, W)."""
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else (sizes[0], 1, sizes[1])


def pieces_of(width: int) -> tuple[int, int]:
    """Return the number of words per row of ``width`` bits, and the number of bits per word."""
    pieces = cdiv(width, 32)
    return pieces, cdiv(width, pieces)


def _seeds_near(rows: int, sizes: Sizes, block: Sizes) -> float:
    """Return how many blocks reach ``rows`` rows of a plane if blocks cover the plane once."""
    slices = min(sizes[0], cdiv(rows, sizes[1]) + block[0] - 1)
    return slices * sizes[1] * sizes[2] / math.prod(block)


def _span(width: int, pieces: int, piece: int) -> int:
    """Return the largest number of words that contain the bits of eight elements.

    The eight elements are neighbours, and the first one is at a multiple of eight.
    """
    if width % 8 == 0 and piece % 8 == 0:
        return 1
    if pieces == 1:
        return cdiv(7, width) + 1
    return 2 if width - (pieces - 1) * piece >= 7 else 3


def seeds_per_rate(sizes: Sizes, block: Sizes) -> float:
    """Return gamma / p: elements of the map / (elements of the block * places of the block).

    The ratio is at most 1, so gamma is a probability: n <= k (n - k + 1) for each edge 1 <= k <= n.
    """
    places = [size - edge + 1 for size, edge in zip(sizes, block, strict=True)]
    return math.prod(sizes) / (math.prod(block) * math.prod(places))


def mean_gap(gamma: float) -> float:
    """Return the mean of the exponential variable that, rounded down, is the gap between seeds."""
    if gamma == 1.0:
        return 0.0
    rate = -math.log1p(-gamma)
    return min(1 / rate, _LARGEST_FLOAT) if rate > 0 else _LARGEST_FLOAT
