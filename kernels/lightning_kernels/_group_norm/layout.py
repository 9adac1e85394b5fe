"""How group norm cuts a tensor into slabs, blocks and tiles."""

import functools
from typing import Any, NamedTuple

from lightning_kernels._core.launch import cdiv, next_power_of_2

# The most elements that a program holds without spilling (tests/test_machine_code.py): of ``x`` in
# the forward pass, of ``x`` and of its gradient in the backward pass.
HELD_FORWARD, HELD_BACKWARD = 16384, 8192
_TILE = 4096  # elements of a program's tile if it can't hold a slab
_LINE = 64  # neighbouring channels that are read at full speed
_SECTOR = 16  # channels of 16 bits that fill a sector of 32 bytes
_MEMBERS = 8192  # most elements of the table that maps channels to groups
_PROGRAMS = 4  # on each multiprocessor, if programs share slabs


class Plan(NamedTuple):
    """How a tensor is cut. :mod:`lightning_kernels._group_norm.kernels` defines the terms.

    Attributes:
        slabs: Slabs of a sample.
        width: Channels of a slab.
        blocks: Blocks of channels of a slab.
        splits: Programs that share a block.
        tiles: Tiles of a block.
        constants: Constants of all kernels.
        is_held: Whether a program holds a whole slab.
    """

    slabs: int
    width: int
    blocks: int
    splits: int
    tiles: int
    constants: dict[str, Any]
    is_held: bool


@functools.lru_cache(maxsize=4096)
def plan_of(
    samples: int, channels: int, pixels: int, groups: int, channels_last: bool, held: int,
    multiprocessors: int,
) -> Plan:  # fmt: skip
    """Return how a tensor is cut; ``held`` is the most elements that a program may hold."""
    group_size = channels // groups
    count = _groups_of_slab(groups, group_size, pixels, channels_last, held)
    slabs, width = cdiv(groups, count), count * group_size
    block, tile = next_power_of_2(width), next_power_of_2(pixels)
    is_held = block * tile <= held
    if not is_held:
        block, tile = _tile(block, tile, channels_last, several=count > 1)
    blocks, tiles = cdiv(width, block), cdiv(pixels, tile)
    strides = (channels | width) if channels_last else pixels
    constants = {
        "GROUPS": count,
        "PADDED": next_power_of_2(count),
        "CHANNELS": block,
        "PIXELS": tile,
        "ALIGNMENT": min(strides & -strides, 16),
        "CHANNELS_LAST": channels_last,
        "num_warps": max(1, min(16, block * tile // (held // 16 if is_held else 512))),
    }
    programs = samples * slabs * blocks
    splits = max(1, min(tiles, _PROGRAMS * multiprocessors // programs))
    return Plan(slabs, width, blocks, splits, tiles, constants, is_held)


def _groups_of_slab(
    groups: int, group_size: int, pixels: int, channels_last: bool, held: int
) -> int:
    """Return the number of groups of a slab.

    Channels last, a slab has as many groups as make wide accesses; contiguous, as many as fill a
    tile. Among these numbers the best lets a program hold a slab, and leaves the fewest lanes idle.
    """
    plane = next_power_of_2(pixels)
    wanted = max(_LINE if channels_last else 1, _TILE // plane)
    most = max(2 * _LINE, wanted) if channels_last else wanted

    def is_possible(count: int) -> bool:
        padded = next_power_of_2(count * group_size)
        return padded <= most and padded * next_power_of_2(count) <= _MEMBERS

    def cost(count: int) -> tuple[bool, bool, int, int]:
        width = count * group_size
        narrow = channels_last and count < groups and (width % 8 != 0 or width < _SECTOR)
        padded = next_power_of_2(width)
        return narrow, padded * plane > held, cdiv(groups, count) * padded, abs(wanted - width)

    counts = (n for n in range(1, min(groups, most) + 1) if n == 1 or is_possible(n))
    return min(counts, key=cost)


def _tile(block: int, tile: int, channels_last: bool, several: bool) -> tuple[int, int]:
    """Return channels and pixels of a tile of a slab of ``block`` by ``tile``, powers of two."""
    if several:  # groups stay whole
        return block, min(tile, _TILE // block)
    if channels_last:
        block = min(block, max(_LINE, _TILE // tile))
        return block, min(tile, _TILE // block)
    block = min(block, max(_TILE // tile, _TILE // 1024))
    return block, min(tile, _TILE // block)
