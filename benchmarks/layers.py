"""The layers that ``cpu`` measures, each with the layer that it replaces."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision import ops
from torchvision.models import convnext, vision_transformer
from typing_extensions import override

from benchmarks import shapes
from benchmarks.providers import BLOCK_SIZE, DROP_RATE
from benchmarks.shapes import Dims
from lightning_practices import nn

_GROUPS = 4
_HEADS = 4


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of this project and the layer that it replaces.

    Attributes:
        ours: The class of this project.
        peer: The class that it is compared with.
        arguments: Function from the shape of the input to the arguments of both classes.
        cpu: Shapes of the input on the CPU.
        inputs: Number of inputs of that shape.
        options: Keyword arguments of both classes.
    """

    ours: Callable[..., torch.nn.Module]
    peer: Callable[..., torch.nn.Module]
    arguments: Callable[[Dims], tuple[Any, ...]]
    cpu: tuple[Dims, ...]
    inputs: int = 1
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def make(self, dims: Dims) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Return our layer and the peer for inputs of shape ``dims``."""
        ours, peer = (
            kind(*self.arguments(dims), **self.options) for kind in (self.ours, self.peer)
        )
        return ours, peer

    @property
    def package(self) -> str:
        """The name of the peer's package."""
        return self.peer.__module__.partition(".")[0]


class _AddDropoutLayerNorm(torch.nn.LayerNorm):
    """Dropout, addition and norm in separate calls."""

    def __init__(self, size: int, p: float) -> None:
        super().__init__(size)
        self.p = p

    @override
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(residual + F.dropout(x, self.p))


class _NormAlone(nn.AddDropoutLayerNorm):
    """Our layer without its second result, the sum, which the peer doesn't return."""

    @override
    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        y, _ = super().forward(*inputs)
        return y


class _DropConnectLinear(torch.nn.Linear):
    """A linear layer with dropout of its weight."""

    def __init__(self, inputs: int, outputs: int, p: float) -> None:
        super().__init__(inputs, outputs)
        self.p = p

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, self.p), self.bias)


def _our_drop_connect_linear(inputs: int, outputs: int, p: float) -> torch.nn.Module:
    return nn.DropConnectLinear(inputs, outputs, p=p)


def _layers(
    names: str, arguments: Callable[[Dims], tuple[Any, ...]], cpu: tuple[Dims, ...],
    room: Any = torch.nn, inputs: int = 1, **options: Any,
) -> dict[str, Layer]:  # fmt: skip
    """Return our layers ``names`` and those of the module ``room``, by ``"nn."`` and the name."""
    return {
        f"nn.{name}": Layer(getattr(nn, name), getattr(room, name), arguments, cpu, inputs, options)
        for name in names.split()
    }


def _last(dims: Dims) -> tuple[int]:
    return (dims[-1],)


def _channels(dims: Dims) -> tuple[int]:
    return (dims[1],)


def _rate(dims: Dims) -> tuple[float]:
    return (DROP_RATE,)


def _blocks(dims: Dims) -> tuple[Any, ...]:
    return DROP_RATE, BLOCK_SIZE


def _transformer(dims: Dims) -> tuple[Any, ...]:
    return dims[-1], _HEADS, 2 * dims[-1], DROP_RATE


LAYERS: dict[str, Layer] = {
    **_layers("LayerNorm RMSNorm", _last, shapes.CPU_ROWS),
    **_layers("LayerNorm2d", _channels, shapes.CPU_IMAGES, convnext),
    **_layers("GroupNorm", lambda dims: (_GROUPS, dims[1]), shapes.CPU_IMAGES),
    **_layers("InstanceNorm1d", _channels, shapes.CPU_LINES, affine=True),
    **_layers("InstanceNorm2d", _channels, shapes.CPU_IMAGES, affine=True),
    **_layers("InstanceNorm3d", _channels, shapes.CPU_VOLUMES, affine=True),
    **_layers("BatchNorm1d", _channels, ((16, 8), (256, 1024))),
    **_layers("BatchNorm2d SyncBatchNorm", _channels, shapes.CPU_IMAGES),
    **_layers("BatchNorm3d", _channels, shapes.CPU_VOLUMES),
    **_layers("Dropout AlphaDropout", _rate, shapes.CPU_ROWS),
    **_layers("Dropout1d", _rate, shapes.CPU_LINES),
    **_layers("Dropout2d FeatureAlphaDropout", _rate, shapes.CPU_IMAGES),
    **_layers("Dropout3d", _rate, shapes.CPU_VOLUMES),
    **_layers("StochasticDepth", lambda dims: (DROP_RATE, "row"), shapes.CPU_IMAGES, ops),
    **_layers("DropBlock2d", _blocks, shapes.CPU_BLOCKS[:2], ops),
    **_layers("DropBlock3d", _blocks, shapes.CPU_CUBES, ops),
    **_layers("TransformerEncoderLayer", _transformer, shapes.CPU_TOKENS),
    **_layers("TransformerDecoderLayer", _transformer, shapes.CPU_TOKENS, inputs=2),
    **_layers(
        "EncoderBlock",
        lambda dims: (_HEADS, dims[-1], 2 * dims[-1], DROP_RATE, DROP_RATE),
        shapes.CPU_TOKENS, vision_transformer,
    ),
    "nn.AddDropoutLayerNorm": Layer(
        _NormAlone, _AddDropoutLayerNorm, lambda dims: (dims[-1], DROP_RATE), shapes.CPU_ROWS, 2
    ),
    "nn.DropConnectLinear": Layer(
        _our_drop_connect_linear, _DropConnectLinear,
        lambda dims: (dims[-1], dims[-1], DROP_RATE), ((2, 16), (256, 1024)),
    ),
}  # fmt: skip
