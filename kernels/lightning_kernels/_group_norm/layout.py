"""How group norm cuts a tensor into slabs, blocks and tiles."""

import functools
from typing import Any, NamedTuple

from lightning_kernels._core.launch import cdiv, next_power_of_2

# The largest slabs that a program can hold in registers without spilling
# (tests/test_machine_code.py). The forward pass holds a slab of x, the backward pass a slab of x
# and its gradient.
HELD_FORWARD, HELD_BACKWARD = 16384, 8192
_TILE = 4096  # elements per tile if a program can't hold a slab
_LINE = 64  # number of neighbouring channels that a program must read for full bandwidth
_SECTOR = 16  # number of 16-bit channels in a memory sector of 32 bytes
_MEMBERS = 8192  # most elements of the (groups, channels) matrix by which kernels sum over groups
_PROGRAMS = 2  # programs of 8 warps per multiprocessor, if several programs share a slab


class Plan(NamedTuple):
    """How a tensor is cut. :mod:`lightning_kernels._group_norm.kernels` defines the terms.

    Attributes:
        slabs: Number of slabs per sample.
        width: Number of channels per slab.
        blocks: Number of blocks per slab.
        splits: Number of programs that share a block.
        tiles: Number of tiles per block.
        constants: Constants of all kernels.
        is_held: Whether a program holds a whole slab in registers.
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
    element_size: int, multiprocessors: int,
) -> Plan:  # fmt: skip
    """Return how a tensor is cut. ``held`` is the size of the largest slab that a program holds."""
    group_size = channels // groups
    count = _groups_of_slab(groups, group_size, pixels, channels_last, held)
    slabs, width = cdiv(groups, count), count * group_size
    block, tile = next_power_of_2(width), next_power_of_2(pixels)
    is_held = block * tile <= held
    if not is_held:
        block, tile = _tile(block, tile, channels_last, several=count > 1)
    blocks, tiles = cdiv(width, block), cdiv(pixels, tile)
    share = 512  # elements per warp
    if is_held:  # more elements per warp only where a thread's registers can hold them
        share = held // (8 if channels_last and element_size == 2 else 16)
    strides = (channels | width) if channels_last else pixels
    constants = {
        "GROUPS": count,
        "PADDED": next_power_of_2(count),
        "CHANNELS": block,
        "PIXELS": tile,
        "ALIGNMENT": next(n for n in (8, 4, 1) if strides % n == 0),
        "CHANNELS_LAST": channels_last,
        "num_warps": max(1, min(16, block * tile // share)),
    }
    programs = samples * slabs * blocks
    slots = _PROGRAMS * multiprocessors
    if held == HELD_BACKWARD:  # for float32 its kernel has twice as many warps
        slots = slots * 2 // element_size
    splits = max(1, min(tiles, slots // programs))
    return Plan(slabs, width, blocks, splits, tiles, constants, is_held)


def _groups_of_slab(
    groups: int, group_size: int, pixels: int, channels_last: bool, held: int
) -> int:
    """Return the number of groups per slab.

    In channels last a slab should have enough channels for wide loads. In the contiguous layout it
    should have enough elements to fill a tile. Among the possible numbers of groups the function
    prefers, in this order: wide loads; slabs that a program can hold; the least padding; the wanted
    number of channels.
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
    """Return the channels and pixels of a tile, for a slab that a program can't hold.

    Args:
        block: Channels of the slab, rounded up to a power of two.
        tile: Pixels of the slab, rounded up to a power of two.
        channels_last: Whether the layout is channels last.
        several: Whether the slab has several groups.
    """
    if several:  # a block must not split a group
        return block, min(tile, _TILE // block)
    if channels_last:
        block = min(block, max(_LINE, _TILE // tile))
        return block, min(tile, _TILE // block)
    block = min(block, max(_TILE // tile, _TILE // 1024))
    return block, min(tile, _TILE // block)
