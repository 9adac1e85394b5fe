"""Inputs as the weights' own transforms make them."""

import sys
from functools import partial
from typing import Any

import numpy
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.models import (
    ConvNeXt_Tiny_Weights,
    EfficientNet_B0_Weights,
    ResNet18_Weights,
    ViT_B_16_Weights,
    Weights,
    WeightsEnum,
    resnet18,
)
from torchvision.models.segmentation import FCN_ResNet50_Weights
from torchvision.transforms._presets import ImageClassification

from lightning_practices.surgery import input_transform

pytestmark = pytest.mark.plain

# Of each side: 3 roundings before the division by at least 0.224, and one of values up to 2.7, in
# units of 2**-24, are 16.1 of these at most.
ROUNDING = 2 * 17 * 2.0**-24


def image(height: int = 260, width: int = 330) -> Any:
    values = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("weights", [
    ResNet18_Weights.DEFAULT, ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,
    ConvNeXt_Tiny_Weights.DEFAULT, EfficientNet_B0_Weights.DEFAULT,
], ids=str)  # fmt: skip
def test_weights_of_torchvision(weights: Any) -> None:
    transform, theirs = input_transform(weights), weights.transforms()
    made: Tensor = transform(image())
    assert made.dtype is torch.float32
    assert made.shape == (3, *theirs.crop_size * 2)
    torch.testing.assert_close(made, theirs(image()), rtol=0, atol=ROUNDING)
    pixels = torch.rand(2, 3, 260, 330)
    assert torch.equal(transform(pixels), theirs(pixels))


class Aliased(WeightsEnum):  # type: ignore[misc]
    A = Weights("", partial(ImageClassification, crop_size=32, antialias=False), {})


def test_weights_that_do_not_smooth() -> None:
    pixels = torch.rand(3, 300, 300)
    assert torch.equal(input_transform(Aliased.A)(pixels), Aliased.A.transforms()(pixels))


@pytest.mark.parametrize("changes", [
    {}, {"crop_mode": "squash"}, {"crop_mode": "squash", "input_size": (3, 96, 128)},
    {"interpolation": "bilinear", "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3},
])  # fmt: skip
def test_models_of_timm(changes: dict[str, Any]) -> None:
    model: Any = timm.create_model("resnet18")
    model.pretrained_cfg = {**model.pretrained_cfg, **changes}
    theirs: Any = create_transform(**resolve_model_data_config(model))
    made: Tensor = input_transform(model)(image())
    torch.testing.assert_close(made, theirs(image()), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("changes", [{"crop_mode": "border"}, {"input_size": (3, 96, 128)}])
def test_what_is_timms_own(changes: dict[str, Any]) -> None:
    model: Any = timm.create_model("resnet18")
    model.pretrained_cfg = {**model.pretrained_cfg, **changes}
    with pytest.raises(ValueError, match=r"is only known to timm: use timm.data.create_transform"):
        input_transform(model)


def test_what_says_nothing_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is for SemanticSegmentation and not .*: use FCN_ResN"):
        input_transform(FCN_ResNet50_Weights.DEFAULT)
    for other in (resnet18(weights=None), nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"got {type(other).__name__}, which doesn't describe"):
            input_transform(other)
    with pytest.raises(TypeError, match="got 'DEFAULT', which doesn't describe"):
        input_transform("DEFAULT")
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(TypeError, match="got Linear, which doesn't describe"):
        input_transform(nn.Linear(2, 2))
