"""Time steps of sequences: which are read, and which are padding."""

from typing import Any

import torch
from torch import Tensor

from lightning_practices.advisor._trace import Call, Value


def is_last_step(user: Call, time: int) -> bool:
    """Return whether a call takes all features of the last time step."""
    if user.name == "select":
        place, index = user.get(1, "dim"), user.get(2, "index")
        return place in (time, time - 3) and index in (-1, user.inputs[0].shape[time] - 1)
    index = user.get(1, "idx") if user.name == "__getitem__" else None
    parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    parts = tuple(part for part in parts if part is not Ellipsis)
    if len(parts) <= time or isinstance(parts[time], Value | bool):
        return False
    rest = [part for place, part in enumerate(parts) if place != time]
    is_end = parts[time] in (-1, user.inputs[0].shape[time] - 1)
    return is_end and isinstance(parts[time], int) and all(part == slice(None) for part in rest)


def padding_at_the_end(x: Tensor) -> Tensor | None:
    """Return the number of padded steps at the end of each sequence; ``None`` if there are none.

    Padding is one token, or vectors of zeros, that sequences have at their end alone.

    Args:
        x: Tokens of shape (samples, steps), or vectors of shape (samples, steps, features).
    """
    if x.dim() == 2 and not x.is_floating_point():
        is_padding = x == x[:, -1].mode().values
    elif x.dim() == 3 and x.is_floating_point():
        is_padding = (x == 0).all(dim=2)
    else:
        return None
    lengths = is_padding.flip(1).long().cumprod(dim=1).sum(dim=1)
    is_apart = bool((is_padding.sum(dim=1) == lengths).all())
    return lengths if is_apart and bool((lengths < x.shape[1]).all()) else None


def are_lengths_of_padding(lengths: Tensor | None, steps: int) -> bool:
    """Return whether most sequences end by padding, of a fifth of all steps and various lengths."""
    if lengths is None:
        return False
    share, count = (lengths > 0).float().mean(), len(torch.unique(lengths))
    return bool(share >= 0.5) and count >= 3 and float(lengths.float().mean()) >= 0.2 * steps
