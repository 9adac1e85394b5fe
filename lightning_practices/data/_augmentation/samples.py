"""Transforms of one sample, and of a batch with a draw for each sample."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_practices._seeds import hashed
from lightning_practices.data._augmentation.checks import (
    check_batch,
    check_image,
    check_range,
    needs_unit_range,
)
from lightning_practices.data._augmentation.states import seed_all, states_kept
from lightning_practices.data._augmentation.vectorized import is_same_for_all, vectorized


def transformed_sample(transforms: Sequence[Any], image: Any, is_checked: bool) -> Any:
    """Return an image after all transforms, which draw from the global generators.

    Args:
        transforms: The transforms.
        image: A tensor or a PIL image.
        is_checked: Whether the range of floating images is checked.
    """
    check_image(image)
    values = _wide(image)
    for transform in transforms:
        if is_checked and needs_unit_range(transform):
            check_range(transform, values)
        values = transform(values)
    return _as_before(values, image)


def transformed_batch(
    transforms: Sequence[Any], images: Tensor, seed: int, is_checked: bool
) -> Tensor:
    """Return a batch after all transforms, each sample by draws of its own.

    Args:
        transforms: The transforms.
        images: A batch ``(N, C, H, W)``.
        seed: The draws depend on this, and on the shape of the batch, alone.
        is_checked: Whether the range of floating images is checked.
    """
    check_batch(images)
    if not len(images):
        return images
    generator = torch.Generator().manual_seed(seed)
    values = _wide(images)
    for place, transform in enumerate(transforms):
        if is_checked and needs_unit_range(transform):
            check_range(transform, values)
        at_once = vectorized(transform)
        if at_once is not None:
            values = at_once(transform, values, generator)
        elif is_same_for_all(transform):
            values = transform(values)
        else:
            values = _one_by_one(transform, values, hashed(seed, place))
    made: Tensor = _as_before(values, images)
    return made


def _one_by_one(transform: Any, images: Tensor, seed: int) -> Tensor:
    made = []
    with states_kept(images.device):
        for number, image in enumerate(images):
            seed_all(hashed(seed, number), images.device)
            made.append(transform(image))
    shapes = {tuple(one.shape) for one in made}
    if len(shapes) > 1:
        raise ValueError(
            f"{type(transform).__name__} makes images of different shapes of one batch,"
            f" {', '.join(map(str, sorted(shapes)))}: crop or resize after it"
        )
    return torch.stack(made)


def _wide(image: Any) -> Any:
    """Return images of 16 bits as float32, since torchvision doesn't take all of them."""
    is_narrow = isinstance(image, Tensor) and image.dtype in (torch.float16, torch.bfloat16)
    return image.float() if is_narrow else image


def _as_before(values: Any, image: Any) -> Any:
    """Return images of 16 bits in their own dtype again."""
    return values if _wide(image) is image else values.to(image.dtype)
