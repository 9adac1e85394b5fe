"""Blocks of convolution, norm and activation of timm, transformers, torchvision and MONAI."""

import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from typing_extensions import override

from lightning_practices.surgery import fuse, unfuse
from tests.surgery.conftest import Calls
from tests.surgery.models import assert_equal, everything, randomise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Build = Callable[[], Any]


def of_transformers(file: str, name: str, *args: Any, **options: Any) -> Build:
    def build() -> Any:
        module = import_module(f"transformers.models.{file}.modeling_{file}")
        return getattr(module, name)(*args, **options)

    return build


def of_timm(file: str, name: str, *args: Any, **options: Any) -> Build:
    return lambda: getattr(import_module(f"timm.models.{file}"), name)(*args, **options)


def of_monai(name: str, *args: Any, **options: Any) -> Build:
    return lambda: getattr(import_module("monai.networks.nets.resnet"), name)(*args, **options)


def mobile_net(**options: Any) -> Any:
    return SimpleNamespace(layer_norm_eps=1e-3, hidden_act="relu6", **options)


_EFFICIENT = SimpleNamespace(
    num_channels=3, width_coefficient=0.1, depth_divisor=8, batch_norm_eps=1e-3,
    batch_norm_momentum=0.9, hidden_act="swish",
)  # fmt: skip


class Root(nn.Module):
    """The root of a DLA, with two inputs made of one."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.root = of_timm("dla", "DlaRoot", 6, 3, 1, shortcut)()

    @override
    def forward(self, x: Tensor) -> Any:
        return self.root([x, x.sin()])


class Speech(nn.Module):
    """The convolutions of a Conformer, for rows of 3 channels of which some are padding."""

    def __init__(self, file: str, name: str, mask: bool) -> None:
        super().__init__()
        config = SimpleNamespace(
            hidden_size=3, conv_depthwise_kernel_size=3, hidden_act="swish",
            speech_encoder_hidden_act="swish", speech_encoder_dropout=0.2,
            conformer_conv_dropout=0.2,
        )  # fmt: skip
        self.block = of_transformers(file, f"{name}ConformerConvolutionModule", config)()
        self.mask = mask

    @override
    def forward(self, x: Tensor) -> Any:
        rows = x.mean(-1).transpose(1, 2)
        if not self.mask:
            return self.block(rows)
        mask = torch.ones(rows.shape[:2], device=x.device)
        mask[1, 5:] = 0
        return self.block(rows, attention_mask=mask)


class Sums(nn.Module):
    """The sum over all results of a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    @override
    def forward(self, x: Tensor) -> Any:
        found = self.backbone(x)
        found = found.values() if isinstance(found, dict) else found
        return torch.cat([each.flatten() for each in found])


def getter(*names: str) -> Build:
    return lambda: Sums(
        IntermediateLayerGetter(resnet18(num_classes=2), {name: name for name in names})
    )


def features(name: str, **options: Any) -> Build:
    def build() -> Any:
        net = import_module("timm").create_model(name, features_only=True, **options)
        return Sums(net)

    return build


# The block, its folded norms, and those with a sum among them. The input has 3 channels.
BLOCKS = {
    "ResNet": (of_transformers("resnet", "ResNetConvLayer", 3, 4), 1, 0),
    "RegNet": (of_transformers("regnet", "RegNetConvLayer", 3, 4, activation="silu"), 1, 0),
    "BEiT": (of_transformers("beit", "BeitConvLayer", 3, 4, 3, activation="gelu"), 1, 0),
    "MobileViT": (
        of_transformers(
            "mobilevit", "MobileViTConvLayer", SimpleNamespace(hidden_act="silu"), 3, 4, 3
        ),
        1, 0,
    ),
    "MobileNetV1": (
        of_transformers(
            "mobilenet_v1", "MobileNetV1ConvLayer", mobile_net(tf_padding=True), 3, 4, 3, 2
        ),
        1, 0,
    ),
    "MobileNetV2": (
        of_transformers(
            "mobilenet_v2", "MobileNetV2ConvLayer", mobile_net(tf_padding=False), 3, 4, 3
        ),
        1, 0,
    ),
    "UperNet": (of_transformers("upernet", "UperNetConvModule", 3, 4, 3), 1, 0),
    "HGNetV2": (
        of_transformers("hgnet_v2", "HGNetV2ConvLayer", 3, 4, 3, use_learnable_affine_block=True),
        1, 0,
    ),
    "DETR": (of_transformers("detr", "DetrConvBlock", 3, 16), 1, 0),
    "RT-DETR": (
        of_transformers(
            "rt_detr", "RTDetrConvNormLayer", SimpleNamespace(batch_norm_eps=1e-5), 3, 4, 3, 1,
            activation="silu",
        ),
        1, 0,
    ),
    "EfficientNet stem": (
        of_transformers("efficientnet", "EfficientNetEmbeddings", _EFFICIENT), 1, 0,
    ),
    "EfficientNet expansion": (
        of_transformers("efficientnet", "EfficientNetExpansionLayer", _EFFICIENT, 3, 6, 1), 1, 0,
    ),
    "EfficientNet depthwise": (
        of_transformers("efficientnet", "EfficientNetDepthwiseLayer", _EFFICIENT, 3, 2, 3, True),
        1, 0,
    ),
    "Wav2Vec2-Conformer": (lambda: Speech("wav2vec2_conformer", "Wav2Vec2", False), 1, 0),
    "SeamlessM4T": (lambda: Speech("seamless_m4t", "SeamlessM4T", False), 1, 0),
    "SeamlessM4T with padding": (lambda: Speech("seamless_m4t", "SeamlessM4T", True), 1, 0),
    "timm HGNet": (of_timm("hgnet", "ConvBNAct", 3, 4, 3, use_lab=True), 1, 0),
    "timm EfficientViT": (
        of_timm("efficientvit_mit", "ConvNormAct", 3, 4, act_layer=nn.Hardswish), 1, 0,
    ),
    "timm Xception": (
        of_timm("xception_aligned", "SeparableConv2d", 3, 4, norm_layer=nn.BatchNorm2d), 2, 0,
    ),
    "timm DLA": (of_timm("dla", "DlaBasic", 3, 3), 2, 1),
    "timm DLA bottleneck": (of_timm("dla", "DlaBottleneck", 3, 3), 3, 1),
    "timm DLA root": (lambda: Root(True), 1, 1),
    "timm DLA root without shortcut": (lambda: Root(False), 1, 0),
    "timm GELU": (lambda: gelu_of_timm(), 1, 0),
    "MONAI": (of_monai("ResNetBlock", 3, 3, 2), 2, 1),
    "MONAI bottleneck": (
        lambda: of_monai("ResNetBottleneck", 3, 3, 2, downsample=nn.Conv2d(3, 12, 1))(), 3, 1,
    ),
}  # fmt: skip
NETWORKS = {
    "getter": (getter("layer1", "layer2"), 9, 4),
    "getter of the activation": (getter("relu", "layer1"), 5, 2),
    "getter of the norm": (getter("bn1", "layer1"), 4, 2),
    "timm features": (features("resnet18", out_indices=(0, 1)), 5, 2),
    "timm dict of features": (features("dla34", out_indices=(0, 1, 2), feature_cls="dict"), 8, 2),
    "MONAI resnet": (
        of_monai(
            "ResNet", "basic", [1, 1, 1, 1], [4, 4, 4, 4], spatial_dims=2, n_input_channels=3,
            conv1_t_size=3, num_classes=2,
        ),
        9, 4,
    ),
}  # fmt: skip


def gelu_of_timm() -> Any:
    layers = import_module("timm.layers")
    return nn.Sequential(nn.Conv2d(3, 4, 1), layers.BatchNormAct2d(4, act_layer=layers.GELU))


def built(name: str, build: Build) -> Any:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    elif name.startswith("MONAI"):
        pytest.importorskip("monai")
    elif name in BLOCKS:
        pytest.importorskip("transformers")
    net = build()
    randomise(net)
    return net


ALL = {**BLOCKS, **NETWORKS}


@pytest.mark.plain
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_a_block_computes_the_same(name: str, training: bool, fused_calls: Calls) -> None:
    build, folds, sums = ALL[name]
    net = built(name, build).double().train(training)
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    report = fuse(net)
    assert (len(report.folded), report.skipped) == (folds, [])
    assert sum("add" in folded.chain for folded in report.folded) == sums
    torch.testing.assert_close(everything(net, x), everything(plain, x))
    batch_norms = sum("BatchNorm" in folded.chain for folded in report.folded)
    assert (len(fused_calls), sum(adds for _, adds in fused_calls)) == (batch_norms, sums)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_restored(name: str) -> None:
    net = built(name, BLOCKS[name][0])
    classes, x = [type(module) for module in net.modules()], torch.randn(2, 3, 8, 8)
    fuse(net)
    expected = everything(copy.deepcopy(net), x)
    assert_equal(everything(pickle.loads(pickle.dumps(net)), x), expected)
    assert len(unfuse(net).folded) == BLOCKS[name][1]
    assert [type(module) for module in net.modules()] == classes


def without_dropout(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


@pytest.mark.kernel
@pytest.mark.parametrize("name", BLOCKS)
def test_the_kernels_of_a_block(name: str, device: str) -> None:
    """The kernels' own tests bound their errors; here the right ones have to run."""
    net = without_dropout(built(name, BLOCKS[name][0])).to(device)
    exact, x = copy.deepcopy(net).double(), torch.randn(2, 3, 8, 8, device=device)
    fuse(net)
    y, expected = net(x), exact(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    for mine, wanted in zip(net.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(mine.to(wanted.dtype), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.plain
@pytest.mark.parametrize(
    "name", [name for name in BLOCKS if not name.startswith(("timm", "MONAI"))]
)
def test_a_block_with_another_forward_is_skipped(name: str) -> None:
    block = built(name, BLOCKS[name][0])
    block = getattr(block, "block", block)
    own = type("Own", (type(block),), {"forward": lambda self, x: x, "__module__": __name__})
    block.__class__ = own
    (skipped,) = fuse(block).skipped
    assert skipped.reason == "not folded: Own overrides forward"


@pytest.mark.plain
def test_arguments_by_name(fused_calls: Calls) -> None:
    block = built("ResNet", BLOCKS["ResNet"][0])
    x = torch.randn(2, 3, 8, 8)
    expected = block(x)
    fuse(block)
    torch.testing.assert_close(block(hidden_states=x), expected)
    assert not fused_calls
    torch.testing.assert_close(block(x), expected)
    assert len(fused_calls) == 1


@pytest.mark.plain
def test_hooks_of_layers_run(fused_calls: Calls) -> None:
    block = built("ResNet", BLOCKS["ResNet"][0])
    fuse(block)
    seen: list[Tensor] = []
    block.activation.register_forward_hook(lambda *call: seen.append(call[2]))
    y = block(torch.randn(2, 3, 8, 8))
    assert torch.equal(seen[0], y)
    assert not fused_calls
