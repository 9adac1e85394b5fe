"""The transform of images that pretrained weights require."""

import math
import sys
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

from lightning_practices._arguments import shown


def input_transform(weights: WeightsEnum | nn.Module) -> v2.Compose:
    r"""Return the transform from an image to the input that pretrained weights require.

    It takes a PIL image, or a ``uint8`` or floating-point tensor of shape ``(..., 3, height,
    width)``, and returns a ``torch.float32`` tensor. It resizes the shorter side, crops the centre
    to the size of the training images, scales values to [0, 1] and standardises each channel,
    :math:`(x - \mu) / \sigma`, with the statistics of the data that the weights were trained on.
    The numbers come from the weights' metadata. Nothing is downloaded.

    Source: lecture S0, on adapting the input size.

    Args:
        weights: Weights of torchvision, such as ``ResNet18_Weights.DEFAULT``, or a timm model.

    Raises:
        TypeError: If ``weights`` is neither weights nor a timm model. A torchvision model doesn't
            record its weights.
        ValueError: If the weights are not for the classification of images, or timm's ``crop_mode``
            is neither ``"center"`` with square images nor ``"squash"``.

    Example:
        >>> import torchvision
        >>> from lightning_practices.surgery import input_transform
        >>> transform = input_transform(torchvision.models.ResNet18_Weights.DEFAULT)
        >>> transform(torch.zeros(3, 300, 400, dtype=torch.uint8)).shape
        torch.Size([3, 224, 224])
    """
    if isinstance(weights, WeightsEnum):
        preset: Any = weights.transforms()
        if not isinstance(preset, ImageClassification):
            raise ValueError(
                f"{weights} is for {type(preset).__name__} and not for the classification of"
                f" images: use {type(weights).__name__}.{weights.name}.transforms()"
            )
        return _compose(
            preset.resize_size, preset.crop_size, preset.mean, preset.std, preset.interpolation,
            antialias=preset.antialias,
        )  # fmt: skip
    timm: Any = sys.modules.get("timm.data")  # loaded if the model is a timm model
    if timm is None or not isinstance(getattr(weights, "pretrained_cfg", None), dict):
        got = type(weights).__name__ if isinstance(weights, nn.Module) else shown(weights)
        raise TypeError(
            "weights has to be torchvision's, as in ResNet18_Weights.DEFAULT, or a timm model, but"
            f" got {got}, which doesn't describe its inputs"
        )
    config = timm.resolve_model_data_config(weights)
    height, width = config["input_size"][-2:]
    mode = config["crop_mode"]
    scaled = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(
            f"crop_mode={mode!r} with {height} x {width} pixels is only known to timm: use"
            " timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
        )
    resized = scaled[:1] if mode == "center" else scaled
    interpolation = InterpolationMode(config["interpolation"])
    return _compose(resized, [height, width], config["mean"], config["std"], interpolation)


def _compose(
    resize: list[int],
    crop: list[int],
    mean: Any,
    std: Any,
    interpolation: InterpolationMode,
    *,
    antialias: bool | None = True,
) -> v2.Compose:
    return v2.Compose(
        [
            v2.Resize(resize, interpolation, antialias=antialias),
            v2.CenterCrop(crop),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )
