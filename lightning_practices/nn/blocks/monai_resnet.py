"""MONAI's residual networks and their blocks."""

from typing import Any

from monai.networks.nets import resnet
from torch import Tensor
from typing_extensions import override

from lightning_practices.nn._norm_activation import norm_activation
from lightning_practices.nn.blocks.block import Chain, FusedBlock


class ResNetBlock(FusedBlock, resnet.ResNetBlock):  # type: ignore[misc]  # untyped
    """Two convolutions, and the addition of the shortcut."""

    original = resnet.ResNetBlock
    sources = {"forward": ("315fe6bf7879",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return Chain("bn1", "act"), Chain("bn2", "act", adds=True)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        y = norm_activation(self.conv1(x), self.bn1, self.act)
        y = self.conv2(y)
        return _end(self, y, self.bn2, x)


class ResNetBottleneck(FusedBlock, resnet.ResNetBottleneck):  # type: ignore[misc]  # untyped
    """Three convolutions, and the addition of the shortcut."""

    original = resnet.ResNetBottleneck
    sources = {"forward": ("f7f8f6b56fe8",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return Chain("bn1", "act"), Chain("bn2", "act"), Chain("bn3", "act", adds=True)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        y = norm_activation(self.conv1(x), self.bn1, self.act)
        y = norm_activation(self.conv2(y), self.bn2, self.act)
        return _end(self, self.conv3(y), self.bn3, x)


class ResNet(FusedBlock, resnet.ResNet):  # type: ignore[misc]  # untyped
    """The whole network. Its stem has a norm before an activation."""

    original = resnet.ResNet
    sources = {"forward": ("7b8f02c4e7af",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (Chain("bn1", "act"),)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        x = norm_activation(self.conv1(x), self.bn1, self.act)
        if not self.no_max_pool:
            x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.avgpool):
            x = layer(x)
        x = x.view(x.size(0), -1)
        return x if self.fc is None else self.fc(x)


def _end(block: Any, y: Tensor, norm: Any, x: Tensor) -> Any:
    """Normalise the branch ``y``, add the shortcut of ``x``, and apply the activation."""
    shortcut = x if block.downsample is None else block.downsample(x)
    return norm_activation(y, norm, block.act, shortcut, inplace=True)
