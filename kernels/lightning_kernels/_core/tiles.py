"""Tiles of a matrix: their sizes, the positions of their elements, and loads of parameters."""

import functools

from lightning_kernels._core.launch import cdiv, next_power_of_2
from lightning_kernels._core.triton import tl, triton

_TILE = 4096  # elements per tile


def width_of(size: int, widths: tuple[int, ...]) -> int:
    """Return the width of a tile over rows of ``size`` elements.

    It is the element of ``widths`` that needs the least padding. For rows shorter than the smallest
    of ``widths``, the last one, it is the next power of 2, at least 8.
    """
    if size <= widths[-1]:
        return max(8, next_power_of_2(size))
    return min(widths, key=lambda width: (cdiv(size, width) * width, -width))


@functools.lru_cache(maxsize=4096)
def tile_of(rows: int, columns: int, num_warps: int = 4) -> dict[str, int]:
    """Return the kernel's constants for an elementwise function of a matrix: tile and warps."""
    width = width_of(columns, (256, 128, 64))
    height = min(_TILE // width, next_power_of_2(rows))
    # A matrix of few rows gets wider tiles.
    width = max(width, min(_TILE // height, next_power_of_2(columns)))
    alignment = min(columns & -columns, 16)
    return {"ROWS": height, "COLUMNS": width, "ALIGNMENT": alignment, "num_warps": num_warps}


@functools.lru_cache(maxsize=4096)
def tile_of_rows(num_rows: int, size: int, elements: int, least: int = 1) -> dict[str, int]:
    """Return the kernel's constants for tiles of whole rows, which a program holds in registers.

    Args:
        num_rows: Number of rows of the matrix.
        size: Length of a row.
        elements: Number of elements in a tile of four warps. A longer row gets more warps.
        least: Smallest number of rows in a tile.
    """
    block_size = next_power_of_2(size)
    rows = max(least, min(elements // block_size, next_power_of_2(num_rows)))
    num_warps = max(4, min(16, rows * block_size * 4 // elements))
    return {"ROWS": rows, "BLOCK_SIZE": block_size, "num_warps": num_warps}


@triton.jit
def place_of_tile(row_tile, column_tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the rows, columns, bounds mask and memory offsets of the elements of a tile."""
    row = row_tile * tl.full((), ROWS, tl.int64) + tl.arange(0, ROWS)[:, None]
    first = column_tile * tl.full((), COLUMNS, tl.int64)
    column = first + tl.arange(0, COLUMNS)[None, :]
    in_bounds = (row < rows) & (column < columns)
    return row, column, in_bounds, row * columns + column


@triton.jit
def load_or(pointer, index, in_bounds, default):
    """Load elements as float32. Return ``default`` if ``pointer`` is ``None``."""
    values = default
    if pointer is not None:
        values = tl.load(pointer + index, mask=in_bounds, other=default).to(tl.float32)
    return values


@triton.jit
def scaled(values, weight_ptr, column, in_columns):
    """Return ``values`` times the weight of each column, or ``values`` if there is no weight."""
    if weight_ptr is not None:
        values *= tl.load(weight_ptr + column, mask=in_columns, other=0.0).to(tl.float32)
    return values


@triton.jit
def shifted(values, bias_ptr, column, in_columns):
    """Return ``values`` plus the bias of each column, or ``values`` if there is no bias."""
    if bias_ptr is not None:
        values += tl.load(bias_ptr + column, mask=in_columns, other=0.0).to(tl.float32)
    return values
