"""How batch norm cuts a tensor into programs and tiles."""

import functools
from typing import Any, NamedTuple

import torch

from lightning_kernels._core.launch import cdiv, next_power_of_2
from lightning_kernels._core.tiles import width_of

_TILE = 4096  # elements per tile
# Programs of 8 warps that fit a multiprocessor: four of the kernel for statistics, with 64
# registers per thread; two of the kernel for gradients, which reads two tensors and needs 128.
_STATISTICS_PROGRAMS, _REDUCE_PROGRAMS = 4, 2


class Plan(NamedTuple):
    """How a tensor is cut. :mod:`lightning_kernels._batch_norm.kernels` defines the terms.

    Attributes:
        sizes: Outer extent, inner extent and number of channels, for the kernels that sum.
        groups: Number of groups, which are slabs of channels in channels last, else channels.
        splits: Number of programs per group: for the statistics, and for the gradients.
        sum_tile: Constants of the kernels that sum.
        matrix: Numbers of rows, columns and channels, for the elementwise kernels.
        programs: Number of programs of the elementwise kernels.
        map_tile: Constants of the elementwise kernels.
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
    """Return how a dense tensor of ``shape`` is cut into programs and tiles."""
    channels = shape[1]
    plane = shape[2:].numel()
    if channels_last:
        outer, inner = shape[0] * plane, channels
        rows, width = outer, width_of(channels, (64, 32))
        groups = cdiv(channels, width)
    else:
        outer, inner = shape[0], plane
        rows, width = outer * channels, width_of(plane, (256, 128, 64))
        groups = channels
    alignment = min(inner & -inner, 16)
    constants = {"ALIGNMENT": alignment, "CHANNELS_LAST": channels_last}
    height = min(_TILE // width, next_power_of_2(outer))
    if not channels_last:  # a batch of few samples gets wider tiles
        width = max(width, min(_TILE // height, next_power_of_2(plane)))
    tiles = cdiv(outer, height) * (1 if channels_last else cdiv(plane, width))
    sum_tile = {"OUTER": height, "INNER": width, "num_warps": _warps(height * width, 512)}
    height = min(_TILE // width, next_power_of_2(rows))
    # Elements per warp. Narrow loads and stores hold more addresses in registers.
    share = 1024 if alignment >= 4 else 512
    map_tile = {"ROWS": height, "COLUMNS": width, "num_warps": _warps(height * width, share)}
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


def _warps(elements: int, share: int) -> int:
    return max(1, elements // share)
