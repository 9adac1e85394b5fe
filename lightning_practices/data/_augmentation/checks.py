"""Which images are refused, since torchvision would transform them wrongly without a word."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from lightning_practices._arguments import shown

_CLAMPING = (  # which clamp floats to [0, 1], or take 1 for white
    v2.AugMix, v2.AutoAugment, v2.ColorJitter, v2.RandAugment, v2.RandomAdjustSharpness,
    v2.RandomAutocontrast, v2.RandomEqualize, v2.RandomInvert, v2.RandomPhotometricDistort,
    v2.RandomPosterize, v2.RandomSolarize, v2.TrivialAugmentWide,
)  # fmt: skip
_ROUNDING = 1e-3  # of resized images beyond [0, 1]


def parts_of(transform: Any) -> Iterator[Any]:
    """Yield a transform and, if it holds others, these too."""
    yield transform
    inner = getattr(transform, "transforms", None)
    if inner is None and isinstance(transform, nn.Sequential | nn.ModuleList):
        inner = transform
    if isinstance(inner, list | tuple | nn.Sequential | nn.ModuleList):
        for one in inner:
            yield from parts_of(one)


def needs_unit_range(transform: Any) -> bool:
    """Say whether floats outside of [0, 1] would be clamped."""
    return any(isinstance(one, _CLAMPING) for one in parts_of(transform))


def check_image(image: Any) -> None:
    """Raise unless torchvision transforms an image, or a batch of images, of this type.

    Raises:
        TypeError: If it doesn't: it passes arrays on as they are, and takes the largest number of
            an integer type for white.
    """
    if isinstance(image, Image):
        return
    if not isinstance(image, Tensor):
        raise TypeError(
            "an image to augment has to be a tensor or a PIL image, but got"
            f" {shown(image)}, of class {type(image).__name__}: convert it in the dataset, as by"
            " torchvision.transforms.v2.ToImage()"
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(
            f"images to augment have to be uint8 or floating, but got {image.dtype}: convert them"
            " in the dataset, as by image.to(torch.uint8)"
        )


def check_batch(images: Any) -> None:
    """Raise unless a value is a batch of images that torchvision transforms.

    Raises:
        TypeError: See :func:`check_image`.
        ValueError: If it is of another shape.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            "images to augment on the device have to be a tensor (N, C, H, W), but got a"
            f" {type(images).__name__}: images of different sizes have to be cropped or resized in"
            " the dataset; or augment in the workers"
        )
    check_image(images)
    if images.ndim != 4:
        raise ValueError(
            "a batch of images to augment has to be of shape (N, C, H, W), but got"
            f" {tuple(images.shape)}: gray images need C = 1, as by unsqueeze(1)"
        )


def check_range(transform: Any, images: Any) -> None:
    """Raise if floating images have values outside of [0, 1]. The host waits for the device.

    Raises:
        ValueError: If they have.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point() or not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return
    name = type(transform).__name__
    raise ValueError(
        f"{name} takes floating images from 0 to 1, and would clamp others, but got values from"
        f" {low:.3g} to {high:.3g}: augment first and standardise afterwards, as the datamodule's"
        " preprocess='standardize' does, and take Normalize out of the dataset; images from 0 to"
        " 255 have to be uint8, or divided by 255"
    )
