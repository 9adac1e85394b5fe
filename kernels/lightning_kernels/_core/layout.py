"""The memory layouts that kernels can read: contiguous, channels last, and other dense layouts."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from lightning_kernels._core.dispatch import is_transformed

# The channels-last format of tensors of 4 and of 5 dimensions.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_dense(x: Tensor) -> bool:
    """Return whether ``x`` is dense: its elements fill a range of memory, without gap or overlap.

    The dimensions may have any order in memory.
    """
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()


def to_dense(x: Tensor) -> Tensor:
    """Return ``x`` if it is contiguous or channels last, else a copy in one of these formats.

    The copy has the format that the output of torch's own operators would have.
    """
    if x.is_contiguous():
        return x
    channels_last = CHANNELS_LAST.get(x.dim())
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return x
    return x.contiguous(memory_format=suggest_memory_format(x))


def has_channels_innermost(x: Tensor) -> bool:
    """Return whether the channels of one pixel of a dense ``x`` are neighbours in memory.

    That is so in channels last, for the shape ``(N, C)``, and for images of one pixel.
    """
    if x.dim() == 2:
        return True
    if x.is_contiguous():
        return x.shape[2:].numel() == 1
    return True


def output_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of an output like ``x``: contiguous if ``x`` is, else that of ``x``.

    A tensor with sizes of 1 can be both contiguous and channels last. For such an input the outputs
    of torch's operators have the strides of a contiguous tensor.
    """
    return torch.contiguous_format if x.is_contiguous() else torch.preserve_format


def with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``tensor`` if it has these strides, else a copy with these strides."""
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)


def with_format_of(tensor: Tensor, x: Tensor) -> Tensor:
    """Return ``tensor`` in the memory format of ``x``.

    In a ``torch.func`` transform ``tensor`` is returned as it is: vmap supports no memory formats.
    """
    if is_transformed():
        return tensor
    return tensor.contiguous(memory_format=suggest_memory_format(x))


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return contiguous tensors: copies of those that are not. ``None`` stays ``None``."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
