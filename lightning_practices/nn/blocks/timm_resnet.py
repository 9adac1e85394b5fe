"""timm's residual networks and their blocks."""

from typing import Any

from timm.models import resnet
from timm.models._manipulate import checkpoint_seq
from torch import Tensor
from typing_extensions import override

from lightning_practices.nn._norm_activation import norm_activation, passes_on
from lightning_practices.nn.blocks.block import Chain, FusedBlock


class BasicBlock(FusedBlock, resnet.BasicBlock):  # type: ignore[misc]  # untyped
    """Two convolutions, and the addition of the shortcut."""

    original = resnet.BasicBlock
    sources = {"forward": ("459b888dd004",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (
            Chain("bn1", "act1", between=("drop_block",)),
            Chain("bn2", "act2", adds=True, between=("se", "drop_path")),
        )

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        y = _drop_activate(self.conv1(x), self.bn1, self.drop_block, self.act1)
        return _end(self, self.conv2(self.aa(y)), self.bn2, self.act2, x)


class Bottleneck(FusedBlock, resnet.Bottleneck):  # type: ignore[misc]  # untyped
    """Three convolutions, and the addition of the shortcut."""

    original = resnet.Bottleneck
    sources = {"forward": ("58c1c81d9c8b",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (
            Chain("bn1", "act1"),
            Chain("bn2", "act2", between=("drop_block",)),
            Chain("bn3", "act3", adds=True, between=("se", "drop_path")),
        )

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        y = norm_activation(self.conv1(x), self.bn1, self.act1)
        y = _drop_activate(self.conv2(y), self.bn2, self.drop_block, self.act2)
        return _end(self, self.conv3(self.aa(y)), self.bn3, self.act3, x)


class ResNet(FusedBlock, resnet.ResNet):  # type: ignore[misc]  # untyped
    """The whole network. Its stem has a norm before an activation."""

    original = resnet.ResNet
    sources = {"forward_features": ("b3983db7730c",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (Chain("bn1", "act1"),)

    @override
    def forward_features(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward_features(self, x)
        x = self.maxpool(norm_activation(self.conv1(x), self.bn1, self.act1))
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        if self.grad_checkpointing:
            return checkpoint_seq(stages, x, flatten=True)
        for stage in stages:
            x = stage(x)
        return x


def _drop_activate(x: Tensor, norm: Any, drop: Any, activation: Any) -> Any:
    if passes_on(drop):
        return norm_activation(x, norm, activation)
    return activation(drop(norm(x)))


def _end(block: Any, y: Tensor, norm: Any, activation: Any, x: Tensor) -> Any:
    """Normalise the branch ``y``, add the shortcut of ``x``, and apply the activation."""
    if block.se is None and block.drop_path is None:
        shortcut = x if block.downsample is None else block.downsample(x)
        return norm_activation(y, norm, activation, shortcut, inplace=True)
    y = norm(y)
    for layer in (block.se, block.drop_path):
        y = y if layer is None else layer(y)
    y += x if block.downsample is None else block.downsample(x)
    return activation(y)
