"""Tiles of whole rows, which a program holds in registers as pieces of a power of 2 of columns.

The dimensions of Triton's tensors are powers of 2. As one tensor, a row of 768 elements would leave
a quarter of the lanes idle; as three pieces of 256 columns it leaves none. A tile is a tuple of
``PIECES`` tensors of shape ``(ROWS, BLOCK_SIZE)``. ``FULL`` says that no piece has columns beyond
the row. Otherwise only the last one has.
"""

import functools

from torch import Tensor

from lightning_kernels._core.launch import cdiv, next_power_of_2
from lightning_kernels._core.triton import tl, triton

_REGISTERS = 65536  # of a multiprocessor
_SMALLEST = 32  # columns of a piece, so that threads that are neighbours access at least 64 bytes


def pieces_of(size: int, most: int) -> tuple[int, int]:
    """Return the number of pieces of a row and the number of columns of a piece.

    Args:
        size: Length of the row.
        most: Number of pieces of a row that needs no odd number of pieces: a power of 2.
    """
    longest = next_power_of_2(size)
    for pieces in (8, 4):
        block_size = longest // pieces
        needed = cdiv(size, block_size) if block_size >= _SMALLEST else 0
        if needed % 2 == 1:  # 5 or 7 of 8 pieces, or 3 of 4
            return needed, block_size
    block_size = max(longest // most, min(longest, 2 * _SMALLEST))
    return cdiv(size, block_size), block_size


@functools.lru_cache(maxsize=4096)
def tile_of_rows(
    num_rows: int, size: int, elements: int, most: int = 4, least: int = 1
) -> dict[str, int]:
    """Return the kernel's constants for tiles of whole rows.

    Args:
        num_rows: Number of rows of the matrix.
        size: Length of a row.
        elements: Number of elements that a thread holds, about.
        most: Number of pieces of a row that needs no odd number of pieces: a power of 2.
        least: Smallest number of rows in a tile.
    """
    pieces, block_size = pieces_of(size, most)
    elements = next_power_of_2(cdiv(elements, pieces))  # of each piece
    rows = max(least, min(128 * elements // block_size, next_power_of_2(num_rows)), 1)
    num_warps = max(4, min(16, rows * block_size // (32 * elements)))
    return {
        "ROWS": rows, "PIECES": pieces, "BLOCK_SIZE": block_size,
        "FULL": pieces * block_size == size, "num_warps": num_warps,
    }  # fmt: skip


def stages_of(tile: dict[str, int], *tensors: Tensor | None) -> int:
    """Return the stages of a loop over tiles: a program loads ``stages - 1`` tiles ahead.

    Args:
        tile: The constants that :func:`tile_of_rows` returns.
        *tensors: The tensors of which the loop loads tiles, or ``None``.

    The tiles lie in shared memory. 6 KiB a warp leave room for 16 warps on GPUs of 100 KiB, where a
    program may use 99 KiB, also for conversions between layouts.
    """
    elements = tile["ROWS"] * tile["PIECES"] * tile["BLOCK_SIZE"]
    size = elements * sum(0 if tensor is None else tensor.element_size() for tensor in tensors)
    return 1 + min(2, min(6144 * tile["num_warps"], 81920) // size)


def resident(warps: int, tile: dict[str, int]) -> tuple[int, dict[str, int]]:
    """Return how many programs a multiprocessor holds, and the kernel's limit of registers for it.

    A loop over tiles is started once on each place for a program. The limit makes the compiler keep
    to ``warps`` warps: without it a few registers more or less change their number.
    """
    registers = _REGISTERS // (32 * max(warps, tile["num_warps"])) // 8 * 8
    return max(1, warps // tile["num_warps"]), {"maxnreg": min(registers, 255)}


@triton.jit
def no_pieces():
    """Return a tuple to which pieces are added. A literal ``()`` would be of another type."""
    return ()


@triton.jit
def columns_of(
    piece, size, height: tl.constexpr, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Return the columns of a piece and the mask of those within the row, ``height`` equal rows.

    Parameters of as many rows as the tile are loaded by the threads that need them. Parameters of
    one row would have to move between threads.
    """
    column = piece * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[None, :]
    column = tl.broadcast_to(column, (height, BLOCK_SIZE))
    if FULL or piece < PIECES - 1:
        in_columns = tl.full((height, BLOCK_SIZE), True, tl.int1)
    else:
        in_columns = column < size
    return column, in_columns


@triton.jit
def load_rows(
    row_ptr, stride, in_rows, size, ROWS: tl.constexpr, PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Load rows as a tuple of float32 pieces, with 0 out of bounds.

    ``row_ptr`` points to the first element of each row. The next one is ``stride`` elements on.
    """
    tile = no_pieces()
    for piece in tl.static_range(PIECES):
        column, in_columns = columns_of(piece, size, 1, PIECES, BLOCK_SIZE, FULL)
        values = tl.load(row_ptr + column * stride, mask=in_rows & in_columns, other=0.0)
        tile += (values.to(tl.float32),)
    return tile


@triton.jit
def full_rows(value, height: tl.constexpr, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Return a tuple of float32 pieces, all elements of which are ``value``."""
    tile = no_pieces()
    for _ in tl.static_range(PIECES):
        tile += (tl.full((height, BLOCK_SIZE), value, tl.float32),)
    return tile


@triton.jit
def row_sums(tile):
    """Return the sum of each row."""
    total = tile[0]
    for piece in tl.static_range(1, len(tile)):
        total += tile[piece]
    return tl.sum(total, axis=1, keep_dims=True)


@triton.jit
def row_sums_of_products(a, b):
    """Return the sum of the products of each row.

    The addition of 0 rounds the first product. Without it the compiler would fuse the product with
    the first addition between threads, ``a * b + other``: each thread would round its own product
    but not the other's, so that two threads would hold unequal copies of one sum.
    """
    total = tl.fma(a[0], b[0], 0.0)
    for piece in tl.static_range(1, len(a)):
        total += a[piece] * b[piece]
    return tl.sum(total, axis=1, keep_dims=True)


@triton.jit
def reciprocal_sqrt(values):
    """Return ``1 / sqrt(values)``, right to a unit in the last place.

    The instruction may be off by two units, in all elements of a row alike. A step of Newton's
    method corrects it. For 0 and infinity the step would be nan.
    """
    root = tl.rsqrt(values)
    error = tl.fma(-values * root, root, 1.0)
    return tl.where(error == error, tl.fma(0.5 * root, error, root), root)


@triton.jit
def mean_of(total, size):
    """Return ``total / size``, right to a unit in the last place.

    The quotient may be off by two units. Its remainder corrects it, but for infinity, where the
    remainder would be nan.
    """
    mean = total / size
    remainder = tl.fma(-mean, tl.zeros_like(mean) + size, total)
    return tl.where(remainder == remainder, mean + remainder / size, mean)


@triton.jit
def reciprocal(size, FULL: tl.constexpr):
    """Return ``1 / size``, right to a unit in the last place. With ``FULL`` it is a constant."""
    inverse = tl.full((1, 1), 1.0, tl.float32) / size
    if not FULL:
        count = tl.zeros((1, 1), tl.float32) + size
        inverse = tl.fma(inverse, tl.fma(-count, inverse, 1.0), inverse)
    return inverse


@triton.jit
def times(a, b):
    """Return the products of two tuples of pieces, each rounded to float32.

    The addition of 0 keeps the compiler from fusing a product with a later addition. Then a product
    would have two values, and the difference of equal products would not be 0.
    """
    tile = no_pieces()
    for piece in tl.static_range(len(a)):
        first, second = tl.broadcast(a[piece], b[piece])
        tile += (tl.fma(first, second, 0.0),)
    return tile


@triton.jit
def rows_where(kept, tile):
    """Return the tile, with 0 in rows that are not ``kept``."""
    rows = no_pieces()
    for piece in tl.static_range(len(tile)):
        rows += (tl.where(kept, tile[piece], 0.0),)
    return rows


@triton.jit
def plus(total, a):
    """Return ``total + a``."""
    tile = no_pieces()
    for piece in tl.static_range(len(total)):
        tile += (total[piece] + a[piece],)
    return tile


@triton.jit
def plus_products(total, a, b):
    """Return ``total + a * b``."""
    tile = no_pieces()
    for piece in tl.static_range(len(total)):
        tile += (total[piece] + a[piece] * b[piece],)
    return tile


@triton.jit
def load_parameter(
    pointer, default, size, height: tl.constexpr, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Load a parameter as a tuple of float32 pieces of ``height`` equal rows.

    All elements are ``default`` if ``pointer`` is ``None``.
    """
    tile = full_rows(default, height, PIECES, BLOCK_SIZE)
    if pointer is not None:
        tile = no_pieces()
        for piece in tl.static_range(PIECES):
            column, in_columns = columns_of(piece, size, height, PIECES, BLOCK_SIZE, FULL)
            values = tl.load(pointer + column, mask=in_columns, other=0.0)
            tile += (values.to(tl.float32),)
    return tile


@triton.jit
def store_column_sums(
    pointer, place, tile, size, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr
):
    """Store the sum of each column from ``place`` on, unless ``pointer`` is ``None``."""
    if pointer is not None:
        for piece in tl.static_range(PIECES):
            column, in_columns = columns_of(piece, size, 1, PIECES, BLOCK_SIZE, FULL)
            sums = tl.sum(tile[piece], axis=0, keep_dims=True)
            tl.store(pointer + place + column, sums, mask=in_columns)


@triton.jit
def store_rows(
    row_ptr, tile, in_rows, size, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Store a tile in the dtype of ``row_ptr``, which points to the first element of each row."""
    for piece in tl.static_range(PIECES):
        column, in_columns = columns_of(piece, size, 1, PIECES, BLOCK_SIZE, FULL)
        values = tile[piece].to(row_ptr.dtype.element_ty)
        tl.store(row_ptr + column, values, mask=in_rows & in_columns)


@triton.jit
def centred_rows(
    tile, mean, size, PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr
):
    """Return the rows minus their means, and 0 beyond the end of a row."""
    centred = no_pieces()
    for piece in tl.static_range(PIECES):
        _, in_columns = columns_of(piece, size, 1, PIECES, BLOCK_SIZE, FULL)
        centred += (tl.where(in_columns, tile[piece] - mean, 0.0),)
    return centred


@triton.jit
def load_normalised_rows(
    tile, statistics_ptr, row, in_rows, num_rows, size, CENTRED: tl.constexpr,
    PIECES: tl.constexpr, BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Return the normalised rows, which are 0 out of bounds, and 1/sqrt(...) of each row."""
    if CENTRED:
        mean = tl.load(statistics_ptr + row, mask=in_rows, other=0.0)
        statistics_ptr += num_rows
        tile = centred_rows(tile, mean, size, PIECES, BLOCK_SIZE, FULL)
    rstd = tl.load(statistics_ptr + row, mask=in_rows, other=0.0)
    normalised = no_pieces()
    for piece in tl.static_range(PIECES):
        normalised += (tile[piece] * rstd,)
    return normalised, rstd


@triton.jit
def norm_gradient(grad, normalised, rstd, weight, size, CENTRED: tl.constexpr, FULL: tl.constexpr):
    """Return the gradient of a norm's input, given the gradient of its output."""
    grad = times(grad, weight)
    per_element = reciprocal(size, FULL)
    projection = row_sums_of_products(grad, normalised) * per_element
    mean = 0.0
    if CENTRED:
        mean = row_sums(grad) * per_element
    tile = no_pieces()
    for piece in tl.static_range(len(grad)):
        tile += ((grad[piece] - normalised[piece] * projection - mean) * rstd,)
    return tile
