"""Augmentations and presets by name."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torchvision.transforms import v2

from lightning_practices._arguments import check_choice, check_number
from lightning_practices.data._augmentation.crop import RandomPaddedCrop

AugmentationName = Literal[
    "flip", "vertical_flip", "rotation", "crop", "affine", "shift", "brightness", "cutout", "auto",
    "rand", "trivial", "mixup", "cutmix", "digits", "small_images", "photos",
]  # fmt: skip
"""Names of the augmentations of :func:`~lightning_practices.data.augmentation`."""

_ELSEWHERE = {  # by lecture S0's name
    name: (
        f"{name!r} shifts or scales all images, of all splits, by statistics of the training split:"
        f" it is a preprocessing, preprocess={right!r} of the datamodule or"
        f" preprocessing({right!r})"
    )
    for name, right in (
        ("center", "center"), ("centering", "center"), ("centring", "center"),
        ("whiten", "whiten"), ("whitening", "whiten"), ("standardize", "standardize"),
        ("normalize", "standardize"),
    )
}  # fmt: skip


def _rotation(degrees: Any = 22.5, **options: Any) -> Any:
    return v2.RandomRotation(degrees, **options)


def _crop(size: Any = None, padding: Any = None, **options: Any) -> Any:
    if size is None:
        return RandomPaddedCrop(4 if padding is None else padding, **options)
    return v2.RandomCrop(size, padding, **options)


def _affine(
    degrees: Any = 22.5,
    translate: Sequence[float] | None = (0.1, 0.1),
    scale: Sequence[float] | None = (0.9, 1.1),
    shear: Any = 10.0,
    **options: Any,
) -> Any:
    return v2.RandomAffine(degrees, translate, scale, shear, **options)


def _shift(width: float = 0.1, height: float = 0.1, **options: Any) -> Any:
    shares = (
        check_number(name, share, ge=0, le=1)
        for name, share in (("width", width), ("height", height))
    )
    return v2.RandomAffine(0, tuple(shares), **options)


def _brightness(brightness: Any = 0.2) -> Any:
    return v2.ColorJitter(brightness=brightness)


def _digits() -> list[Any]:
    return [
        v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    ]


def _small_images(padding: int = 4) -> list[Any]:
    return [RandomPaddedCrop(padding), v2.RandomHorizontalFlip()]


def _photos(size: int = 224) -> list[Any]:
    return [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.TrivialAugmentWide(),
        v2.RandomErasing(0.1),
    ]


_NAMED: dict[AugmentationName, Callable[..., Any]] = {
    "flip": v2.RandomHorizontalFlip,
    "vertical_flip": v2.RandomVerticalFlip,
    "rotation": _rotation,
    "crop": _crop,
    "affine": _affine,
    "shift": _shift,
    "brightness": _brightness,
    "cutout": v2.RandomErasing,
    "auto": v2.AutoAugment,
    "rand": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
    "mixup": v2.MixUp,
    "cutmix": v2.CutMix,
    "digits": _digits,
    "small_images": _small_images,
    "photos": _photos,
}


def transforms_of(name: str, argument: str = "name", **options: Any) -> list[Any]:
    """Return the transforms of a name.

    Args:
        name: The name.
        argument: Name of the argument that it was given for, for the error.
        **options: Options of the transform.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If the name is.
    """
    if isinstance(name, str) and name in _ELSEWHERE:
        raise ValueError(_ELSEWHERE[name])
    known: AugmentationName = check_choice(argument, name, get_args(AugmentationName))  # type: ignore[arg-type]
    if isinstance(mode := options.get("interpolation"), str):  # which torchvision 0.26 doesn't take
        modes = [one.value for one in v2.InterpolationMode]
        options["interpolation"] = v2.InterpolationMode(check_choice("interpolation", mode, modes))
    try:
        made = _NAMED[known](**options)
    except TypeError as error:
        raise TypeError(f"augmentation({name!r}): {error}") from error
    return made if isinstance(made, list) else [made]
