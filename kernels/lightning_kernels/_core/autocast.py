"""Dtypes of results under ``torch.autocast``."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_kernels._core.parameters import check_choice

Autocast = Literal["input", "match"]
"""Dtype of a norm's result under autocast, see :func:`~lightning_kernels.layer_norm`."""


def autocast_dtype(function: str, x: Tensor, autocast: Autocast) -> torch.dtype | None:
    """Return the dtype of a norm's result under autocast, or ``None`` for the dtype of ``x``.

    Under autocast on a GPU, torch's norms return float32. With ``"match"`` the norms of this
    package return float32 too.

    Raises:
        ValueError: If ``autocast`` is neither ``"input"`` nor ``"match"``.
    """
    if autocast == "input":
        return None
    check_choice(function, "autocast", autocast, Autocast)
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    matched = is_half and x.is_cuda and torch.is_autocast_enabled("cuda")
    return torch.float32 if matched else None


def without_autocast(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return ``function(x, *args)`` with autocast turned off. ``function`` is one of torch's norms.

    Calls on the CPU don't need it, since autocast of the CPU has no rule for the norms. Some
    devices, such as ``meta``, have no autocast.
    """
    device = x.device.type
    has_autocast = device == "cuda" or torch.amp.is_autocast_available(device)
    if not has_autocast or not torch.is_autocast_enabled(device):
        return call_torch(function, x, *args)
    with torch.autocast(device, enabled=False):
        return call_torch(function, x, *args)


def call_torch(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return ``function(x, *args)``. An error for a dtype that is not floating point names it."""
    try:
        return function(x, *args)
    except RuntimeError as error:
        note_dtype(error, x)
        raise


def note_dtype(error: RuntimeError, x: Tensor) -> None:
    """Add the dtype of ``x`` to an error of torch, if it is not floating point."""
    if not x.is_floating_point():
        error.add_note(f"expected a floating-point input, but got {x.dtype}")
