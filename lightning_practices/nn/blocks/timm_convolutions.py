"""timm's blocks of convolution, norm and activation, of several networks, and their backbones."""

from collections import OrderedDict
from typing import Any

import torch
from timm.models import _features, dla, efficientvit_mit, hgnet, xception_aligned
from torch import Tensor
from typing_extensions import override

from lightning_practices.nn._norm_activation import norm_activation
from lightning_practices.nn.blocks.block import Chain, FusedBlock
from lightning_practices.nn.blocks.layer_getter import kept_apart
from lightning_practices.nn.blocks.sequential import run
from lightning_practices.nn.blocks.steps import Steps


class ConvBNAct(Steps, hgnet.ConvBNAct):  # type: ignore[misc]  # untyped
    """PP-HGNet."""

    original = hgnet.ConvBNAct
    sources = {"forward": ("de6dcb38c2d2",)}
    steps = ("conv", "bn", "act", "lab")


class ConvNormAct(Steps, efficientvit_mit.ConvNormAct):  # type: ignore[misc]  # untyped
    """EfficientViT of MIT."""

    original = efficientvit_mit.ConvNormAct
    sources = {"forward": ("ce581bd2acdd",)}
    steps = ("dropout", "conv", "norm", "act")


class SeparableConv2d(Steps, xception_aligned.SeparableConv2d):  # type: ignore[misc]  # untyped
    """Aligned Xception."""

    original = xception_aligned.SeparableConv2d
    sources = {"forward": ("f4d2d8bccf8f",)}
    steps = ("conv_dw", "bn_dw", "act_dw", "conv_pw", "bn_pw", "act_pw")


class DlaBasic(FusedBlock, dla.DlaBasic):  # type: ignore[misc]  # untyped
    """Two convolutions, and the addition of the shortcut."""

    original = dla.DlaBasic
    sources = {"forward": ("5c96cf31c5ff",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return Chain("bn1", "relu"), Chain("bn2", "relu", adds=True)

    @override
    def forward(self: Any, x: Tensor, shortcut: Tensor | None = None, children: Any = None) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x, shortcut, children)
        y = norm_activation(self.conv1(x), self.bn1, self.relu)
        shortcut = x if shortcut is None else shortcut
        return norm_activation(self.conv2(y), self.bn2, self.relu, shortcut, inplace=True)


class DlaBottleneck(FusedBlock, dla.DlaBottleneck):  # type: ignore[misc]  # untyped
    """Three convolutions, and the addition of the shortcut."""

    original = dla.DlaBottleneck
    sources = {"forward": ("b59a497d765d",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return Chain("bn1", "relu"), Chain("bn2", "relu"), Chain("bn3", "relu", adds=True)

    @override
    def forward(self: Any, x: Tensor, shortcut: Tensor | None = None, children: Any = None) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x, shortcut, children)
        y = norm_activation(self.conv1(x), self.bn1, self.relu)
        y = norm_activation(self.conv2(y), self.bn2, self.relu)
        shortcut = x if shortcut is None else shortcut
        return norm_activation(self.conv3(y), self.bn3, self.relu, shortcut, inplace=True)


class DlaRoot(FusedBlock, dla.DlaRoot):  # type: ignore[misc]  # untyped
    """A convolution of the results of several blocks, and the addition of the first result."""

    original = dla.DlaRoot
    sources = {"forward": ("213e409ad18a",)}

    @override
    def chains(self: Any) -> tuple[Chain, ...]:
        return (Chain("bn", "relu", adds=bool(self.shortcut)),)

    @override
    def forward(self: Any, x_children: list[Tensor]) -> Any:
        if not self.folds(x_children[0]):
            return self.original.forward(self, x_children)
        residual = x_children[0] if self.shortcut else None
        y = self.conv(torch.cat(x_children, 1))
        return norm_activation(y, self.bn, self.relu, residual, inplace=True)


class FeatureDictNet(FusedBlock, _features.FeatureDictNet):  # type: ignore[misc]  # untyped
    """A network up to the last of the layers whose features it returns."""

    original = _features.FeatureDictNet
    sources = {"_collect": ("d69c2779b747",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return kept_apart(self)

    @override
    def _collect(self: Any, x: Any) -> Any:
        if self.grad_checkpointing or not self.folds(x):
            return self.original._collect(self, x)
        found: OrderedDict[str, Tensor] = OrderedDict()
        layers = []
        for name, layer in self.items():
            layers.append(layer)
            if name in self.return_layers:
                x = run(layers, x)
                layers = []
                is_list = isinstance(x, tuple | list)
                first = (torch.cat(x, 1) if self.concat else x[0]) if is_list else x
                found[self.return_layers[name]] = first
        run(layers, x)  # the original runs layers after the last result too
        return found
