"""Rectangles that are erased from a batch, one of its own in each sample."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_practices.data._augmentation.geometry import Draws, chosen, uniform

_ATTEMPTS = 10  # as in torchvision


def draw_rectangles(transform: Any, x: Tensor, generator: torch.Generator) -> Draws:
    """Draw the rectangles: corner ``i, j`` and size ``h, w``, as ``RandomErasing`` does.

    A sample has the first of ten rectangles that is smaller than the image, and else keeps all of
    its pixels.
    """
    count, (channels, height, width) = len(x), x.shape[-3:]
    if len(transform.value) not in (1, channels):
        raise ValueError(
            f"RandomErasing has {len(transform.value)} values, and the images have {channels}"
            " channels: give one value, or one for each channel"
        )
    total = count * _ATTEMPTS
    area = height * width * uniform(total, transform.scale, generator)
    ratio = uniform(total, [math.log(one) for one in transform.ratio], generator).exp()
    h, w = ((area * ratio).sqrt().round(), (area / ratio).sqrt().round())
    h, w = (size.long().view(count, _ATTEMPTS) for size in (h, w))
    fits = (h < height) & (w < width)
    first = fits.int().argmax(1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    is_chosen = chosen(count, transform.p, generator) & fits.any(1)
    i, j = (
        (torch.rand(count, generator=generator) * (most - size + 1)).long().clamp(min=0)
        for most, size in ((height, h), (width, w))
    )
    return {"is_chosen": is_chosen, "i": i, "j": j, "h": h, "w": w}


def erase(transform: Any, x: Tensor, draws: Draws) -> Tensor:
    """Erase each chosen sample's rectangle."""
    height, width = x.shape[-2:]
    rows, columns = (
        (torch.arange(size) >= draws[corner][:, None])
        & (torch.arange(size) < (draws[corner] + draws[extent])[:, None])
        for size, corner, extent in ((height, "i", "h"), (width, "j", "w"))
    )
    rows &= draws["is_chosen"][:, None]
    rows, columns = (part.to(x.device, non_blocking=True) for part in (rows, columns))
    value = torch.tensor(transform.value).to(x.device, x.dtype, non_blocking=True)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], value[:, None, None], x)
