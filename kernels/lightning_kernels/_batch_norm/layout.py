"""How batch norm cuts a tensor into programs and tiles.

Each shape of tiles is compiled for itself. There are few, since the sizes of images may differ from
call to call: at most four for any stream of tensors of one layout.
"""

import functools
from typing import Any, NamedTuple

import torch

from lightning_kernels._core.launch import cdiv

_TILE = 4096  # elements per tile
_VECTOR = 8  # elements of the widest access to 16-bit tensors
_WIDTHS = (64, 32, 16)  # columns of a tile in channels last
# Programs of 8 warps per multiprocessor, and the registers per thread that leave space for them, of
# the kernel for statistics, and of the kernel for gradients, which reads two tensors. A fourth
# program for statistics would leave 64 registers, too few for some compilers, which then spill.
_STATISTICS_PROGRAMS, _STATISTICS_REGISTERS = 3, 80
_REDUCE_PROGRAMS, REDUCE_REGISTERS = 2, 128
# A loop computes one tile while the next ones are on their way: with three stages two of them.
_STAGES = {2: 3, 4: 2}


class Plan(NamedTuple):
    """How a tensor is cut. :mod:`lightning_kernels._batch_norm.kernels` defines the terms.

    Attributes:
        matrix: Numbers of rows, columns, columns per channel, and channels.
        groups: Number of groups, and number of tiles of a group per row.
        splits: Number of programs per group: for the statistics, and for the gradients.
        sum_tile: Constants of the kernels that sum.
        registers: Most registers per thread of the kernel for statistics.
        programs: Number of programs of the elementwise kernels.
        map_tile: Constants of the elementwise kernels.
    """

    matrix: tuple[int, int, int, int]
    groups: tuple[int, int]
    splits: tuple[int, int]
    sum_tile: dict[str, Any]
    registers: int
    programs: int
    map_tile: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def plan_of(
    shape: torch.Size, channels_last: bool, element_size: int, multiprocessors: int
) -> Plan:
    """Return how a dense tensor of ``shape`` is cut into programs and tiles."""
    rows, channels, plane = shape[0], shape[1], shape[2:].numel()
    if channels_last:
        rows, plane = rows * plane, 1
    columns = channels * plane
    tile = _map_tile(rows, columns, plane, channels_last)
    if channels_last:
        tile_rows, block, pixels, tiles = tile["ROWS"], tile["COLUMNS"], 1, 1
    else:
        tile_rows, (block, pixels), tiles = 1, *_block(channels, plane)
    groups = cdiv(channels, block)
    warps, programs, registers = 8, _STATISTICS_PROGRAMS, _STATISTICS_REGISTERS
    if tile["ALIGNMENT"] == 1:  # narrow loads hold an address per element
        warps, programs, registers = 16, _REDUCE_PROGRAMS, REDUCE_REGISTERS
    slots = 8 * multiprocessors // warps
    most = cdiv(rows, tile_rows) * tiles
    return Plan(
        matrix=(rows, columns, plane, channels),
        groups=(groups, tiles),
        splits=(
            max(1, min(most, programs * slots // groups)),
            max(1, min(most, _REDUCE_PROGRAMS * slots // groups)),
        ),
        sum_tile={
            "ROWS": tile_rows,
            "CHANNELS": block,
            "PIXELS": pixels,
            "RUN": _run(plane),
            "ALIGNMENT": tile["ALIGNMENT"],
            "STAGES": _STAGES[element_size],
            "num_warps": warps,
        },
        registers=registers,
        programs=cdiv(rows, tile["ROWS"]) * cdiv(columns, tile["COLUMNS"]),
        map_tile=tile,
    )


def _run(plane: int) -> int:
    """Return how many neighbouring columns of the matrix have the same channel: 8 or 1."""
    return _VECTOR if plane % _VECTOR == 0 else 1


def _map_tile(rows: int, columns: int, plane: int, channels_last: bool) -> dict[str, int]:
    """Return the constants of the elementwise kernels."""
    if columns % _VECTOR:
        height, width = (_TILE // _WIDTHS[-1], _WIDTHS[-1]) if channels_last else (1, _TILE)
        return {"ROWS": height, "COLUMNS": width, "RUN": 1, "ALIGNMENT": 1, "num_warps": 8}
    run = _run(plane)
    # A tile of one row loads the parameters of each run: of each element, if a run has one. This
    # costs about as much as three tiles whose rows share the parameters.
    costs = {(1, run): 1 if run > 1 else 3, (16, 1): 1}
    if channels_last:
        costs = {(_TILE // width, 1): 1 for width in _WIDTHS}

    def cost(tile: tuple[int, int]) -> int:
        height, width = tile[0], _TILE // tile[0]
        return costs[tile] * cdiv(rows, height) * height * cdiv(columns, width) * width

    height, run = min(costs, key=cost)
    return {
        "ROWS": height, "COLUMNS": _TILE // height, "RUN": run, "ALIGNMENT": 8, "num_warps": 4,
    }  # fmt: skip


def _block(channels: int, plane: int) -> tuple[tuple[int, int], int]:
    """Return the channels and pixels of a tile of the kernels that sum, and the tiles per row."""
    run = _run(plane)
    blocks = [(16, 256)]
    if channels * plane % _VECTOR == 0:
        blocks = [(8, 512), (64, 64)] if run > 1 else [(64, 64)]
    # Where the columns of a channel begin between two vectors, a tile begins up to 7 before them.
    window = plane if run > 1 else plane + _VECTOR - 1

    def cost(block: tuple[int, int]) -> int:
        return cdiv(channels, block[0]) * block[0] * cdiv(window, block[1]) * block[1]

    block = min(blocks, key=cost)
    return block, cdiv(window, block[1])
