"""The convolution of torchvision's GoogLeNet."""

from typing import Any

from torch import Tensor
from torchvision.models.googlenet import BasicConv2d as Original
from typing_extensions import override

from lightning_practices.nn._norm_activation import norm_activation
from lightning_practices.nn.blocks.block import Chain, FusedBlock


class BasicConv2d(FusedBlock, Original):  # type: ignore[misc]  # untyped
    """A convolution, a norm and relu."""

    original = Original
    sources = {"forward": ("4cc6f0dc8c51",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (Chain("bn", "relu"),)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        return norm_activation(self.conv(x), self.bn, "relu")
