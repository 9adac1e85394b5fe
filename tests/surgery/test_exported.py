"""Fused models and what torch compiles, traces, exports or quantises."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import LightningModule
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision import ops
from torchvision.models import vision_transformer

from lightning_practices.nn import BatchNorm2d
from lightning_practices.surgery import fuse, unfuse

pytestmark = [
    pytest.mark.plain,
    # torch and Lightning deprecate TorchScript and eager quantisation, each in its own words.
    pytest.mark.filterwarnings("ignore:.*(torch.jit|to_torchscript|torch.ao.quantization)"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of checks of shapes
]

IMAGES = (2, 4, 8, 8)
LAYERS: list[Any] = [
    nn.BatchNorm2d(4),
    nn.GroupNorm(2, 4),
    nn.InstanceNorm2d(4),
    nn.LayerNorm(8),
    nn.RMSNorm(8),
    nn.Dropout(0.1),
    nn.Dropout2d(0.1),
    nn.AlphaDropout(0.1),
    ops.StochasticDepth(0.1, "row"),
    LayerNorm2d(4),
    timm.layers.DropPath(0.1),
    nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
]


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Dropout2d(0.1),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(6),
    )
    return model.eval()


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_torchscript_says_to_unfuse_a_layer_and_then_compiles_it(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).eval()
    x = torch.randn(IMAGES)
    for model in (layer, nn.ModuleList([nn.Sequential(layer)])):
        fuse(model)
        kinds = [type(module) for module in model.modules()]
        with pytest.raises(RuntimeError, match=r"unfuse\(model\) first, or use torch\.jit"):
            torch.jit.script(model)
        assert [type(module) for module in model.modules()] == kinds
        unfuse(model)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: torchvision.models.resnet18(num_classes=2), (2, 3, 32, 32)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
        (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), None),
    ],
    ids=["resnet", "encoder", "decoder"],
)
def test_torchscript_and_a_whole_model(
    build: Callable[[], nn.Module], shape: tuple[int, ...] | None
) -> None:
    model = build().eval()
    fuse(model)
    with pytest.raises(RuntimeError, match=r"call lightning_practices\.surgery\.unfuse\(model\)"):
        torch.jit.script(model)
    unfuse(model)
    if shape is not None:  # torch's own decoder can't be compiled
        x = torch.randn(shape)
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


def test_a_lightning_module() -> None:
    module, x = Module().eval(), torch.randn(IMAGES)
    expected = module(x)
    fuse(module)
    with pytest.raises(RuntimeError, match=r"surgery\.unfuse"):
        module.to_torchscript()
    traced: Any = module.to_torchscript(method="trace", example_inputs=x)
    torch.testing.assert_close(traced(x), expected)
    unfuse(module)
    scripted: Any = module.to_torchscript()
    torch.testing.assert_close(scripted(x), expected)


def test_a_fused_model_is_exported() -> None:
    model, x = network(), torch.randn(IMAGES)
    expected = model(x)
    fuse(model)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), expected)


def test_torchscript_and_a_layer_that_was_never_fused() -> None:
    model = nn.Sequential(BatchNorm2d(4))
    fuse(model)
    with pytest.raises(RuntimeError, match=r"BatchNorm2d: surgery\.unfuse leaves it.*Make torch's"):
        torch.jit.script(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "layer",
    [*LAYERS, nn.TransformerEncoderLayer(4, 2), vision_transformer.EncoderBlock(2, 4, 4, 0.1, 0.1)],
    ids=lambda layer: type(layer).__name__,
)
def test_fx_says_to_unfuse(layer: nn.Module, training: bool) -> None:
    model = nn.Sequential(copy.deepcopy(layer)).train(training)
    fuse(model)
    with pytest.raises(TypeError, match=r"torch\.fx can't trace a kernel.*surgery\.unfuse"):
        torch.fx.symbolic_trace(model)


def test_an_unfused_model_is_traced_by_fx_and_quantised() -> None:
    model, x = network(), torch.randn(IMAGES)
    expected = model(x)
    fuse(model)
    unfuse(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    quantised = torch.ao.quantization.fuse_modules(model, [["0.0", "0.1", "0.2"]])
    torch.testing.assert_close(quantised(x), expected)
