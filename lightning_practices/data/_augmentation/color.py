"""Brightness, contrast and saturation of a batch, with factors of its own for each sample."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # noqa: N812

from lightning_practices.data._augmentation.geometry import Draws, uniform

_NAMES = ("brightness", "contrast", "saturation")  # in the order of torchvision's numbers


def draw_jitter(transform: Any, x: Tensor, generator: torch.Generator) -> Draws:
    """Draw the order of the changes, and the factors of those that are on."""
    order = torch.rand(len(x), 4, generator=generator).argsort(1)
    bounds = {name: getattr(transform, name) for name in _NAMES}
    return {"fn_idx": order} | {
        f"{name}_factor": uniform(len(x), both, generator)
        for name, both in bounds.items()
        if both is not None
    }


def jitter(transform: Any, x: Tensor, draws: Draws) -> Tensor:
    """Change the colours of each sample in its order."""
    if x.shape[1] not in (1, 3):
        raise TypeError(f"ColorJitter takes images of 1 or 3 channels, but got {x.shape[1]}")
    active = [number for number, name in enumerate(_NAMES) if f"{name}_factor" in draws]
    if len(active) == 1:
        name = _NAMES[active[0]]
        return _CHANGES[name](x, _factor(draws[f"{name}_factor"], x))
    x = x.clone()
    for place in range(4):
        for number in active:
            name = _NAMES[number]
            rows = (draws["fn_idx"][:, place] == number).nonzero()[:, 0]
            if len(rows):
                factor = _factor(draws[f"{name}_factor"][rows], x)
                at = rows.to(x.device, non_blocking=True)
                x[at] = _CHANGES[name](x[at], factor)
    return x


def _factor(factor: Tensor, x: Tensor) -> Tensor:
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return factor.to(x.device, dtype, non_blocking=True)[:, None, None, None]


def _brighter(x: Tensor, factor: Tensor) -> Tensor:
    return _clamped(x * factor, x)


def _contrasted(x: Tensor, factor: Tensor) -> Tensor:
    return _blended(x, _gray(x).mean((1, 2, 3), keepdim=True), factor)


def _saturated(x: Tensor, factor: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else _blended(x, _gray(x), factor)


_CHANGES = {"brightness": _brighter, "contrast": _contrasted, "saturation": _saturated}


def _gray(x: Tensor) -> Tensor:
    """Return the gray images; torchvision rounds those of whole numbers down."""
    if x.is_floating_point():
        return x if x.shape[1] == 1 else F.rgb_to_grayscale(x)
    gray = x.float() if x.shape[1] == 1 else F.rgb_to_grayscale(x.float())
    return gray.floor_()


def _blended(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return _clamped(x * factor + other * (1 - factor), x)


def _clamped(y: Tensor, x: Tensor) -> Tensor:
    return y.clamp_(0, 1) if x.is_floating_point() else y.clamp_(0, 255).to(x.dtype)
