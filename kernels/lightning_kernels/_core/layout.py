"""The memory layouts that kernels read: contiguous, channels last, or any dense one."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from lightning_kernels._core.dispatch import is_transformed

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of dimensions


def is_dense(x: Tensor) -> bool:
    """Return whether the elements of ``x`` fill a stretch of memory, each once, in any order."""
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()


def to_dense(x: Tensor) -> Tensor:
    """Return ``x``, or a copy, contiguous or channels last: the format of torch's own output."""
    if x.is_contiguous():
        return x
    channels_last = CHANNELS_LAST.get(x.dim())
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return x
    return x.contiguous(memory_format=suggest_memory_format(x))


def has_channels_innermost(x: Tensor) -> bool:
    """Return whether the channels of a dense ``x`` are neighbours, as in ``(N, C)``."""
    if x.dim() == 2:
        return True
    if x.is_contiguous():
        return x.shape[2:].numel() == 1
    return True


def output_format(x: Tensor) -> torch.memory_format:
    """Return the format of an output like ``x``, where sizes of 1 make ``x`` fit two formats.

    Torch then gives its output the strides of a contiguous tensor.
    """
    return torch.contiguous_format if x.is_contiguous() else torch.preserve_format


def with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``tensor``, or a copy of it with these strides."""
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)


def with_format_of(tensor: Tensor, x: Tensor) -> Tensor:
    """Return ``tensor`` in the memory format of ``x``. In a transform vmap knows of no formats."""
    if is_transformed():
        return tensor
    return tensor.contiguous(memory_format=suggest_memory_format(x))


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors contiguous; ``None`` stays ``None``."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
