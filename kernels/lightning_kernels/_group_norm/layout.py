"""How group norm cuts a tensor into slabs and tiles.

Each tile is compiled for itself. There are few, since the sizes of images may differ from call to
call: at most four of each kernel for any stream of tensors of one layout.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_kernels._core.launch import cdiv


class Tile(NamedTuple):
    """A tile of a slab: ``pieces`` pieces of ``pixels`` and ``channels``, for ``warps`` warps."""

    pixels: int
    channels: int
    pieces: int
    warps: int
    is_held: bool = False
    is_single: bool = False  # a slab is one group
    registers: int = 128  # most registers per thread; fewer leave space for more programs

    @property
    def height(self) -> int:
        """Number of pixels."""
        return self.pixels * self.pieces

    @property
    def programs(self) -> int:
        """Number of programs whose registers a multiprocessor has."""
        return 65536 // (32 * self.warps * self.registers)


class Plan(NamedTuple):
    """How a tensor is cut. :mod:`lightning_kernels._group_norm.kernels` defines the terms.

    Attributes:
        slabs: Number of slabs per sample.
        width: Number of channels per slab.
        splits: Number of programs that share a slab; 0 if one program does all of it.
        constants: Constants of the kernels.
    """

    slabs: int
    width: int
    splits: int
    constants: dict[str, Any]


# Tiles for slabs of whole groups, and the alignment of each, by direction and layout: those of the
# forward pass, then of the backward pass, in the contiguous layout, then in channels last.
_WHOLE: dict[tuple[bool, bool], tuple[tuple[Tile, int], ...]] = {
    (False, False): (
        (Tile(32, 32, 8, 4, True, registers=168), 8),
        (Tile(512, 4, 8, 8, True), 8),
        (Tile(16, 64, 4, 4, registers=255), 8),
        (Tile(32, 32, 8, 4, True, registers=168), 4),
    ),
    (False, True): (
        (Tile(8, 64, 8, 2, True, True), 8),
        (Tile(32, 32, 8, 4, True, registers=168), 8),
        (Tile(32, 64, 8, 8, True, True), 8),
        (Tile(16, 64, 4, 4, registers=255), 8),
    ),
    (True, False): (
        (Tile(64, 32, 4, 8, True), 8),
        (Tile(1024, 2, 4, 8, True), 8),
        (Tile(16, 64, 4, 4), 8),
        (Tile(64, 32, 4, 8, True), 4),
    ),
    (True, True): (
        (Tile(16, 64, 4, 4, True, True), 8),
        (Tile(64, 32, 4, 8, True, True), 8),
        (Tile(64, 32, 4, 8, True), 8),
        (Tile(16, 64, 4, 4), 8),
    ),
}
# Tiles for slabs that several programs share, and the alignment of each, by layout.
_SHARED: dict[bool, tuple[tuple[Tile, int], ...]] = {
    False: (
        (Tile(32, 32, 4, 4), 8),
        (Tile(256, 4, 4, 4), 8),
        (Tile(64, 16, 2, 4), 4),
        (Tile(64, 16, 1, 4, registers=168), 1),
    ),
    True: (
        (Tile(16, 64, 4, 4), 8),
        (Tile(64, 16, 4, 4), 8),
        (Tile(32, 32, 4, 4), 4),
        (Tile(64, 16, 1, 4, registers=168), 1),
    ),
}
_MULTIPROCESSORS = 132  # of the GPU of the estimates, so that all GPUs run the same machine code
# Of a multiprocessor: bytes that it moves per cycle, instructions of a warp that it issues per
# cycle, cycles until a load arrives, cycles per walk and byte of an element, cycles of a launch.
_BYTES, _INSTRUCTIONS, _LOAD, _GAP, _LAUNCH = 18, 2.8, 1400, 420, 3500


@functools.lru_cache(maxsize=4096)
def plan_of(
    samples: int, channels: int, pixels: int, groups: int, channels_last: bool, backward: bool,
    element_size: int, multiprocessors: int,
) -> Plan:  # fmt: skip
    """Return how a tensor is cut: the way with the shortest estimated time."""
    group_size = channels // groups
    extent = channels if channels_last else pixels
    alignment = next(n for n in (8, 4, 1) if extent % n == 0)
    work = (20, 21) if backward else (9, 13)  # per element of a walk that sums and one that stores
    tensor = samples * channels * pixels * element_size / _MULTIPROCESSORS / _BYTES

    def cycles(tile: Tile, programs: int, walks: int, sweeps: tuple[int, ...], moves: int) -> float:
        """Return the cycles of a launch that moves the bytes of ``moves`` tensors."""
        issue, wait = _instructions(tile, walks, sweeps, element_size)
        issue *= programs / _MULTIPROCESSORS / _INSTRUCTIONS
        waves = cdiv(programs, tile.programs * _MULTIPROCESSORS)
        return max(tensor * moves, issue, waves * wait) + _LAUNCH

    plans = []
    for tile in _tiles(_SHARED[channels_last], alignment, backward, element_size):
        slabs, walks = cdiv(channels, tile.channels), cdiv(pixels, tile.height)
        splits = _splits(tile, samples * slabs, walks, _MULTIPROCESSORS)
        time: float = (2 + backward) * _LAUNCH
        for sweep, moves in zip(work, (2, 3) if backward else (1, 2), strict=True):
            time += cycles(tile, samples * slabs * splits, cdiv(walks, splits), (sweep,), moves)
        plans.append((time, tile, slabs, tile.channels, splits))
    for tile in _tiles(_WHOLE[backward, channels_last], alignment, backward, element_size):
        count = _groups_of_slab(groups, group_size, tile, channels_last)
        if count and (pixels <= tile.height or not tile.is_held):
            slabs, walks = cdiv(groups, count), cdiv(pixels, tile.height)
            time = cycles(tile, samples * slabs, walks, work, 3 if backward else 2)
            plans.append((time, tile, slabs, count * group_size, 0))
    _, tile, slabs, width, splits = min(plans)
    if splits:
        splits = _splits(tile, samples * slabs, cdiv(pixels, tile.height), multiprocessors)
    constants = {
        "PIXELS": tile.pixels,
        "CHANNELS": tile.channels,
        "PIECES": tile.pieces,
        "ALIGNMENT": alignment,
        "CHANNELS_LAST": channels_last,
        "num_warps": tile.warps,
        "maxnreg": tile.registers,
    }
    if not splits:
        constants |= {"HELD": tile.is_held, "SINGLE": tile.is_single}
    return Plan(slabs, width, splits, constants)


def _splits(tile: Tile, slabs: int, walks: int, multiprocessors: int) -> int:
    """Return how many programs share a slab, so that all run at the same time."""
    return max(1, min(walks, tile.programs * multiprocessors // slabs))


def _tiles(
    tiles: tuple[tuple[Tile, int], ...], alignment: int, backward: bool, element_size: int
) -> Iterator[Tile]:
    """Yield the tiles of an alignment, with registers for two tensors in the backward pass."""
    for tile, needs in tiles:
        if needs != alignment:
            continue
        if backward and not tile.is_held:
            tile = tile._replace(pieces=cdiv(tile.pieces, 2))
        if backward and element_size == 4 and tile.is_held:
            tile = tile._replace(warps=2 * tile.warps, registers=128 if tile.warps == 4 else 64)
        elif backward and element_size == 4:
            tile = tile._replace(registers=168)
        yield tile


def _instructions(
    tile: Tile, walks: int, sweeps: tuple[int, ...], element_size: int
) -> tuple[float, float]:
    """Return the instructions of all warps of a program, and the cycles that it takes by itself."""
    each = tile.height * tile.channels / tile.warps / 32
    if tile.is_held:
        count = wait = (400 if tile.is_single else 600) + each * (sum(sweeps) / 2 + 1)
        wait += _LOAD * element_size / 2
    else:
        count = 600 + sum(walks * each * work for work in sweeps)
        wait = 600 + sum(walks * max(each * work, _GAP * element_size) + _LOAD for work in sweeps)
    return count * tile.warps, wait * max(1, tile.warps // 4)


def _groups_of_slab(groups: int, group_size: int, tile: Tile, channels_last: bool) -> int:
    """Return how many groups of a sample a slab has; 0 if the tile is too narrow for one.

    In channels last the first channel of each slab must be a multiple of 8.
    """
    most = 1 if tile.is_single else groups
    for count in range(min(most, tile.channels // group_size), 0, -1):
        if not channels_last or count == groups or count * group_size % 8 == 0:
            return count
    return 0
