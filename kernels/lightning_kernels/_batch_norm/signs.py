"""One bit per element: the signs that batch norm keeps for its backward pass.

The bits have the order of the elements in memory, eight in a byte. A tensor is a matrix here, whose
rows are the samples, or in channels last the pixels. Each row begins with a new byte.
"""

import torch
from torch import Tensor

from lightning_kernels._core.launch import cdiv
from lightning_kernels._core.layout import has_channels_innermost, to_dense
from lightning_kernels._core.triton import tl, triton


@triton.jit
def store_signs(
    signs_ptr, positive, row, first_column, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Store a tile of booleans as bits. ``first_column`` is a multiple of 8."""
    octets = tl.reshape(positive.to(tl.int32), (ROWS, COLUMNS // 8, 8))
    packed = tl.sum(octets << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)
    octet = first_column // 8 + tl.arange(0, COLUMNS // 8)[None, :]
    size = tl.cdiv(columns, 8)
    tl.store(signs_ptr + row * size + octet, packed, mask=(row < rows) & (octet < size))


@triton.jit
def load_signs(
    signs_ptr, row, octet, in_bounds, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Load a tile of booleans, whose bits are in the bytes ``octet`` of each row."""
    place = row * tl.cdiv(columns, 8) + octet
    packed = tl.load(signs_ptr + place, mask=in_bounds, other=0).to(tl.int32)
    octets = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(octets, (ROWS, COLUMNS)) != 0


def signs_shape(x: Tensor) -> tuple[int, int]:
    """Return the number of rows of the matrix, and the bytes of one bit per column."""
    if has_channels_innermost(x):
        return x.numel() // x.shape[1], cdiv(x.shape[1], 8)
    return x.shape[0], cdiv(x.shape[1:].numel(), 8)


def unpack(signs: Tensor, x: Tensor) -> Tensor:
    """Return the bits in ``signs`` as booleans of the shape of ``x``."""
    x = to_dense(x)
    bits = (signs.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=x.device)) & 1
    bits = bits.flatten(1)[:, : x.numel() // signs.shape[0]].bool()
    if not has_channels_innermost(x):
        return bits.reshape(x.shape)
    return bits.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
