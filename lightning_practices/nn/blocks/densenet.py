"""torchvision's densely connected networks and their layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision.models import densenet
from typing_extensions import override

from lightning_practices.nn._hooks import any_hook_on_all, is_touched
from lightning_practices.nn._norm_activation import norm_activation
from lightning_practices.nn.blocks.block import Chain, FusedBlock
from lightning_practices.nn.blocks.sequential import Sequential, run


class _DenseLayer(FusedBlock, densenet._DenseLayer):  # type: ignore[misc]  # untyped
    """Two convolutions of all previous features, each after a norm and an activation."""

    original = densenet._DenseLayer
    sources = {
        "forward": ("605fb4d99e32",),
        "bn_function": ("f45c6b180e94",),
        "call_checkpoint_bottleneck": ("df3f39fdd3bc",),
    }

    @override
    def chains(self) -> tuple[Chain, ...]:
        return Chain("norm1", "relu1"), Chain("norm2", "relu2")

    @override
    def forward(self: Any, input: Tensor | list[Tensor]) -> Any:
        features = [input] if isinstance(input, Tensor) else input
        if not self.folds(features[0]):
            return self.original.forward(self, input)

        def bottleneck(*features: Tensor) -> Any:
            return self.conv1(norm_activation(torch.cat(features, 1), self.norm1, self.relu1))

        if self.memory_efficient and self.any_requires_grad(features):
            y = checkpoint(bottleneck, *features, use_reentrant=False)
        else:
            y = bottleneck(*features)
        y = self.conv2(norm_activation(y, self.norm2, self.relu2))
        if self.drop_rate > 0:
            y = functional.dropout(y, self.drop_rate, self.training)
        return y


class DenseNet(FusedBlock, densenet.DenseNet):  # type: ignore[misc]  # untyped
    """The whole network. An activation follows the last norm of its features."""

    original = densenet.DenseNet
    sources = {"forward": ("dd0adc4d21be",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (Chain("features.norm5", "relu"),)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        features = self.features
        if (
            type(features).forward not in (nn.Sequential.forward, Sequential.forward)
            or type(features).__iter__ is not nn.Sequential.__iter__
            or next(reversed(features._modules), None) != "norm5"
            or is_touched(features.__dict__)
            or any_hook_on_all()
            or not self.folds(x)
        ):
            return self.original.forward(self, x)
        *layers, norm = features._modules.values()
        x = norm_activation(run(layers, x), norm, "relu")
        x = torch.flatten(functional.adaptive_avg_pool2d(x, (1, 1)), 1)
        return self.classifier(x)
