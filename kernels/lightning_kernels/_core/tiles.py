"""How kernels that map the elements of a matrix cut it into tiles."""

import functools

from lightning_kernels._batch_norm.layout import _width
from lightning_kernels._core.dispatch import next_power_of_2
from lightning_kernels._core.triton import tl, triton

_TILE = 4096  # elements of a program's tile


@functools.lru_cache(maxsize=4096)
def tile_of(rows: int, columns: int, num_warps: int = 4) -> dict[str, int]:
    """Return the constants of a program's tile of a matrix: the width that pads the least."""
    width = _width(columns, (256, 128, 64))
    height = min(_TILE // width, next_power_of_2(rows))
    width = max(width, min(_TILE // height, next_power_of_2(columns)))  # few rows: longer pieces
    alignment = min(columns & -columns, 16)
    return {"ROWS": height, "COLUMNS": width, "ALIGNMENT": alignment, "num_warps": num_warps}


@triton.jit
def place_of_tile(row_tile, column_tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return row, column, which of both exist, and the place in memory, of a tile's elements."""
    row = row_tile * tl.full((), ROWS, tl.int64) + tl.arange(0, ROWS)[:, None]
    first = column_tile * tl.full((), COLUMNS, tl.int64)
    column = first + tl.arange(0, COLUMNS)[None, :]
    in_bounds = (row < rows) & (column < columns)
    return row, column, in_bounds, row * columns + column
