"""Images whose pixels and channels a reshape has mixed up, told by how smooth they are."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_practices.advisor._entries import all_inputs_of, entries, sources_before
from lightning_practices.advisor._observation import Observation

_IMAGES, _FEWEST = 64, 8
_MOST_CHANNELS = 4
# Roughness as the images are, by that in the other order: photographs and digits have 0.7 at most,
# noise has 1.0, and mixed up ones have 1.6 and more.
_ROUGHER = 1.4
_SHARE = 0.9  # of the images that are smoother in the other order


class Scrambled(NamedTuple):
    """Images that are smooth in another order of their elements.

    Attributes:
        shape: Their shape.
        rough: Mean squared difference of neighbouring pixels, by twice the variance: 1 in noise.
        smooth: The same in the other order.
        was_last: Whether the channels were last before the reshape; otherwise they were first.
    """

    shape: tuple[int, ...]
    rough: float
    smooth: float
    was_last: bool


def scrambled_images(seen: Observation) -> Scrambled | None:
    """Return the first images of the train split, or of a first layer, that are mixed up."""
    inputs = all_inputs_of(seen)
    sources = sorted({source for one in inputs for source in sources_before(one.value)})
    tensors = [x for source in sources for x in entries(seen.train, source)[:1]]
    tensors += [one.value.tensor for one in inputs if one.value.tensor is not None]
    found = (_scrambled(x) for x in tensors)
    return next((one for one in found if one is not None), None)


def _scrambled(x: Tensor) -> Scrambled | None:
    if x.dim() != 4 or len(x) < _FEWEST or not 1 < x.shape[1] <= _MOST_CHANNELS < min(x.shape[2:]):
        return None
    x = x.detach()[:_IMAGES].float()
    if not torch.isfinite(x).all():
        return None
    rough = _roughness(x)
    orders: list[Callable[[Tensor], Tensor]] = [_last, _first]
    for order in orders:
        smooth = _roughness(order(x))
        kept = (rough > 0) & (smooth > 0)
        if kept.sum() < _FEWEST or (smooth < rough)[kept].float().mean() < _SHARE:
            continue
        before, after = float(rough[kept].mean()), float(smooth[kept].mean())
        if before > _ROUGHER * after:
            return Scrambled(tuple(x.shape), before, after, order is _last)
    return None


def _last(x: Tensor) -> Tensor:
    """Read the elements as images (N, H, W, C), and put the channels first."""
    count, channels, height, width = x.shape
    return x.reshape(count, height, width, channels).movedim(-1, 1)


def _first(x: Tensor) -> Tensor:
    """Read the elements of the images (N, H, W, C) as images (N, C, H, W)."""
    return x.movedim(1, -1).reshape(x.shape)


def _roughness(x: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours in each image, by twice its variance."""
    x = x - x.mean(dim=(0, 2, 3), keepdim=True)
    differences = sum(x.diff(dim=side).square().mean(dim=(1, 2, 3)) for side in (-1, -2))
    variance = x.square().mean(dim=(1, 2, 3))
    assert isinstance(differences, Tensor)
    return torch.where(variance > 0, differences / (4 * variance), 0)
