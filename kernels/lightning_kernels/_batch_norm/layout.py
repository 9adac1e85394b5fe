"""How batch normalisation sees a tensor's memory, and cuts it into programs."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from lightning_kernels._core.dispatch import cdiv, next_power_of_2

_TILE = 4096  # elements of a program's tile
# Programs of 8 warps that a multiprocessor holds at once: 64 registers a thread leave room for
# four, the 128 of the gradients' kernel, which reads twice as much, for two.
_STATISTICS_PROGRAMS, _REDUCE_PROGRAMS = 4, 2
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Plan(NamedTuple):
    """How a layout is cut, as :mod:`lightning_kernels._batch_norm.kernels` describes it.

    Attributes:
        sizes: Outer and inner extent of the kernels that sum, and the number of channels.
        groups: Slabs of channels, or channels, each summed on its own.
        splits: Programs that share a group, for the statistics and for the gradients.
        sum_tile: Constants of the kernels that sum.
        matrix: Rows, columns and channels of the kernels that map.
        programs: Programs that map.
        map_tile: Constants of the kernels that map.
    """

    sizes: tuple[int, int, int]
    groups: int
    splits: tuple[int, int]
    sum_tile: dict[str, Any]
    matrix: tuple[int, int, int]
    programs: int
    map_tile: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def plan_of(shape: torch.Size, channels_last: bool, multiprocessors: int) -> Plan:
    channels = shape[1]
    plane = shape[2:].numel()
    if channels_last:
        outer, inner = shape[0] * plane, channels
        rows, width = outer, _width(channels, (64, 32))
        groups = cdiv(channels, width)
    else:
        outer, inner = shape[0], plane
        rows, width = outer * channels, _width(plane, (256, 128, 64))
        groups = channels
    alignment = min(inner & -inner, 16)
    constants = {"ALIGNMENT": alignment, "CHANNELS_LAST": channels_last}
    height = min(_TILE // width, next_power_of_2(outer))
    if not channels_last:  # few samples: longer pieces of them
        width = max(width, min(_TILE // height, next_power_of_2(plane)))
    tiles = cdiv(outer, height) * (1 if channels_last else cdiv(plane, width))
    sum_tile = {"OUTER": height, "INNER": width, "num_warps": _warps(height * width, 512)}
    height = min(_TILE // width, next_power_of_2(rows))
    map_tile = {"ROWS": height, "COLUMNS": width, "num_warps": _warps(height * width, 1024)}
    return Plan(
        sizes=(outer, inner, channels),
        groups=groups,
        splits=(
            max(1, min(tiles, _STATISTICS_PROGRAMS * multiprocessors // groups)),
            max(1, min(tiles, _REDUCE_PROGRAMS * multiprocessors // groups)),
        ),
        sum_tile=sum_tile | constants,
        matrix=(rows, inner, channels),
        programs=cdiv(rows, height) * cdiv(inner, width),
        map_tile=map_tile | constants,
    )


def _width(size: int, widths: tuple[int, ...]) -> int:
    """Return the width of a tile over rows of ``size``: of those given what pads the least."""
    if size <= widths[-1]:
        return max(8, next_power_of_2(size))
    return min(widths, key=lambda width: (cdiv(size, width) * width, -width))


def _warps(elements: int, share: int) -> int:
    return max(1, elements // share)


def is_channels_last(x: Tensor) -> bool:
    """Return whether ``x``, dense, holds its channels innermost: as a plain matrix also does."""
    if x.dim() == 2:
        return True
    if x.is_contiguous():
        return x.shape[2:].numel() == 1
    return True


def dense(x: Tensor) -> Tensor:
    """Return ``x`` contiguous or channels last, whichever torch's output for it is."""
    if x.is_contiguous():
        return x
    channels_last = _CHANNELS_LAST.get(x.dim())
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return x
    return x.contiguous(memory_format=suggest_memory_format(x))


def like(tensor: Tensor, x: Tensor) -> Tensor:
    """Return ``tensor`` with the layout of ``x``, a dense tensor of the same shape."""
    if tensor.stride() == x.stride():
        return tensor
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)
