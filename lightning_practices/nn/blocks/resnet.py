"""torchvision's residual networks and their blocks."""

from typing import Any

import torch
from torch import Tensor
from torchvision.models import resnet
from typing_extensions import override

from lightning_practices.nn._norm_activation import norm_activation
from lightning_practices.nn.blocks.block import Chain, FusedBlock


class BasicBlock(FusedBlock, resnet.BasicBlock):  # type: ignore[misc]  # untyped
    """Two convolutions, and the addition of the shortcut."""

    original = resnet.BasicBlock
    sources = {"forward": ("e469bbb0e395",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return Chain("bn1", "relu"), Chain("bn2", "relu", adds=True)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        y = norm_activation(self.conv1(x), self.bn1, self.relu)
        return _end(self, self.conv2(y), self.bn2, x)


class Bottleneck(FusedBlock, resnet.Bottleneck):  # type: ignore[misc]  # untyped
    """Three convolutions, and the addition of the shortcut."""

    original = resnet.Bottleneck
    sources = {"forward": ("ff89db889084",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return Chain("bn1", "relu"), Chain("bn2", "relu"), Chain("bn3", "relu", adds=True)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        y = norm_activation(self.conv1(x), self.bn1, self.relu)
        y = norm_activation(self.conv2(y), self.bn2, self.relu)
        return _end(self, self.conv3(y), self.bn3, x)


class ResNet(FusedBlock, resnet.ResNet):  # type: ignore[misc]  # untyped
    """The whole network. Its stem has a norm before an activation."""

    original = resnet.ResNet
    sources = {"_forward_impl": ("9c951761811f",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (Chain("bn1", "relu"),)

    @override
    def _forward_impl(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original._forward_impl(self, x)
        x = self.maxpool(norm_activation(self.conv1(x), self.bn1, self.relu))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _end(block: Any, y: Tensor, norm: Any, x: Tensor) -> Any:
    """Normalise the branch ``y``, add the shortcut of ``x``, and apply the activation."""
    shortcut = x if block.downsample is None else block.downsample(x)
    return norm_activation(y, norm, block.relu, shortcut, inplace=True)
