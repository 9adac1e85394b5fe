"""Which transforms are computed for a whole batch at once, with a draw for each sample."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_practices.data._augmentation import color, erasing, geometry
from lightning_practices.data._augmentation.crop import RandomPaddedCrop


class Vectorized(NamedTuple):
    """A transform of a batch, in two parts.

    Attributes:
        draw: Draws torchvision's parameters, a row for each sample, on the CPU.
        apply: Transforms the batch by these.
    """

    draw: Callable[[Any, Tensor, torch.Generator], geometry.Draws]
    apply: Callable[[Any, Tensor, geometry.Draws], Tensor]

    def __call__(self, transform: Any, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the transformed batch."""
        return self.apply(transform, x, self.draw(transform, x, generator))


_CROP = Vectorized(geometry.draw_crop, geometry.crop)
_VECTORIZED: dict[type, Vectorized] = {
    v2.RandomHorizontalFlip: Vectorized(geometry.draw_flip, geometry.flip_horizontally),
    v2.RandomVerticalFlip: Vectorized(geometry.draw_flip, geometry.flip_vertically),
    v2.RandomRotation: Vectorized(geometry.draw_rotation, geometry.rotate),
    v2.RandomAffine: Vectorized(geometry.draw_affine, geometry.affine),
    v2.RandomCrop: _CROP,
    RandomPaddedCrop: _CROP,
    v2.ColorJitter: Vectorized(color.draw_jitter, color.jitter),
    v2.RandomErasing: Vectorized(erasing.draw_rectangles, erasing.erase),
}
_SAME_FOR_ALL = (
    v2.CenterCrop, v2.Grayscale, v2.Identity, v2.Normalize, v2.Pad, v2.Resize, v2.ToDtype,
)  # fmt: skip


def vectorized(transform: Any) -> Vectorized | None:
    """Return the vectorised form of a transform; ``None`` if there is none for its options."""
    if isinstance(getattr(transform, "fill", None), dict):  # values by the class of the image
        return None
    if isinstance(getattr(transform, "interpolation", None), int):  # a number of Pillow's
        return None
    if getattr(transform, "expand", False) or getattr(transform, "hue", None) is not None:
        return None
    if isinstance(transform, v2.RandomErasing) and transform.value is None:  # random values
        return None
    return _VECTORIZED.get(type(transform))


def is_same_for_all(transform: Any) -> bool:
    """Say whether a transform draws nothing, so that torchvision's own is right for a batch."""
    return type(transform) in _SAME_FOR_ALL
