"""The weights of a model that can be drawn: their fans, and the laws to draw them by."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from lightning_practices.init._activations import Activation, he_variance, variance
from lightning_practices.init._structure import is_conv1d

Scheme = Literal[
    "auto", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "lecun_normal",
    "orthogonal", "trunc_normal",
]  # fmt: skip
"""Names of the schemes of :func:`~lightning_practices.init.initialize`."""

Role = Literal["layer", "embedding", "input", "hidden"]

STD = 0.02  # of transformers' weights: Devlin et al., 2019, and Radford et al., 2019
_CUT = 2.0  # standard deviations at which the truncated normal is cut, as in BERT

_PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Fans(NamedTuple):
    """How many values a unit sums: of the input in a forward, of the output in a backward pass."""

    fan_in: float
    fan_out: float


@dataclass(frozen=True)
class Weight:
    """A weight of a layer.

    Attributes:
        module: The layer.
        attribute: The weight's name in the layer.
        role: What the weight does.
        parts: Number of matrices that it holds along its first dimension.
    """

    module: nn.Module
    attribute: str
    role: Role = "layer"
    parts: int = 1

    @property
    def value(self) -> Tensor:
        """The weight, computed if it is parametrised."""
        value: Tensor = getattr(self.module, self.attribute)
        return value

    def fans(self) -> Fans:
        """Return the fans of one part."""
        return _fans(self.module, self.attribute, tuple(self.value.shape), self.parts)

    def originals(self) -> list[Tensor]:
        """Return the parameters from which the weight is made: itself, or its originals."""
        if parametrize.is_parametrized(self.module, self.attribute):
            made: Any = self.module.parametrizations[self.attribute]  # type: ignore[index]
            return list(made._parameters.values())
        return [self.module._parameters[self.attribute]]  # type: ignore[list-item]


@dataclass(frozen=True)
class Law:
    """How a weight is drawn.

    Attributes:
        scheme: Name of the scheme.
        std: Standard deviation; for the truncated normal that before it is cut.
        gain: Factor of the standard deviation; ``None`` if it doesn't depend on the activation.
        fan: The fan by which the variance is divided; ``None`` if it doesn't depend on the fans.
    """

    scheme: str
    std: float
    gain: float | None = None
    fan: float | None = None

    def draw(self, weight: Weight, generator: torch.Generator | None) -> Tensor:
        """Return new values for a weight."""
        like = weight.value
        is_double = like.dtype in (torch.float64, torch.complex128)
        device = like.device if generator is None else generator.device
        # Values of 16-bit weights are drawn in 32 bits, and rounded once.
        real = torch.empty(
            like.shape, dtype=torch.float64 if is_double else torch.float32, device=device
        )
        if not like.is_complex():
            return self._fill(real, weight.parts, generator)
        half = Law(self.scheme, self.std / math.sqrt(2), self.gain, self.fan)
        both = [half._fill(torch.empty_like(real), weight.parts, generator) for _ in range(2)]
        values = torch.complex(*both)
        return values / math.sqrt(2) if self.scheme == "orthogonal" else values

    def _fill(self, values: Tensor, parts: int, generator: torch.Generator | None) -> Tensor:
        std = self.std
        for part in values.chunk(parts):
            if self.scheme == "orthogonal":
                nn.init.orthogonal_(part, self.gain or 1.0, generator=generator)
            elif self.scheme == "trunc_normal":
                nn.init.trunc_normal_(part, 0.0, std, -_CUT * std, _CUT * std, generator=generator)
            elif self.scheme.endswith("uniform"):
                bound = math.sqrt(3.0) * std
                nn.init.uniform_(part, -bound, bound, generator=generator)
            else:
                nn.init.normal_(part, 0.0, std, generator=generator)
        return values


def law_of(scheme: str, activation: Activation, fans: Fans, *, own_gain: bool) -> Law:
    r"""Return the law of a scheme.

    Args:
        scheme: Name of the scheme, other than ``"auto"``.
        activation: The activation after the layer.
        fans: The weight's fans.
        own_gain: Whether the scheme's own gain is used in place of the activation's: 1 for
            Xavier's and LeCun's schemes, :math:`\sqrt{2 / (1 + a^2)}` for He's.
    """
    if scheme == "trunc_normal":
        return Law(scheme, STD)
    gain = math.sqrt(variance(activation))
    if scheme == "orthogonal":
        return Law(scheme, math.nan, gain)
    if own_gain:
        gain = math.sqrt(he_variance(activation)) if scheme.startswith("kaiming") else 1.0
    fan = (fans.fan_in + fans.fan_out) / 2 if scheme.startswith("xavier") else fans.fan_in
    return Law(scheme, gain / math.sqrt(fan), gain, fan)


def weights_of(module: nn.Module) -> Iterator[Weight]:
    """Yield the weights of a layer that can be drawn; none for other modules."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield Weight(module, "weight", "embedding")
    elif isinstance(module, nn.Linear | nn.Bilinear | _ConvNd) or is_conv1d(module):
        yield Weight(module, "weight")
    elif isinstance(module, nn.MultiheadAttention):
        for name in _PACKED:
            if getattr(module, name, None) is not None:
                yield Weight(module, name, parts=3 if name == _PACKED[0] else 1)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        gates = gates_of(module)
        for name, _ in [*module.named_parameters(recurse=False)]:
            if name.startswith("weight_hh"):
                yield Weight(module, name, "hidden", gates)
            elif name.startswith("weight"):
                yield Weight(module, name, "input", 1 if name.startswith("weight_hr") else gates)


def gates_of(module: nn.Module) -> int:
    """Return how many matrices the weights of a recurrent layer hold."""
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return 4
    return 3 if isinstance(module, nn.GRU | nn.GRUCell) else 1


def biases_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the biases of a layer whose weights can be drawn."""
    for name, p in module.named_parameters(recurse=False):
        if "bias" in name.split("_") or name in ("in_proj_bias", "bias_ih", "bias_hh"):
            yield name, p


def _fans(module: nn.Module, attribute: str, shape: tuple[int, ...], parts: int) -> Fans:
    if isinstance(module, _ConvNd):
        sums = (module.in_channels / module.groups, module.out_channels / module.groups)
        window = math.prod(module.kernel_size)
        # The mean number of weights that reach a position from the dilated side.
        strided = math.prod(
            max(k / s, 1.0) for k, s in zip(module.kernel_size, module.stride, strict=True)
        )
        if isinstance(module, _ConvTransposeNd):
            return Fans(sums[0] * strided, sums[1] * window)
        return Fans(sums[0] * window, sums[1] * strided)
    if is_conv1d(module):
        return Fans(shape[0], shape[1])
    if isinstance(module, nn.Bilinear):
        return Fans(module.in1_features * module.in2_features, module.out_features)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Fans(shape[1], shape[0])
    return Fans(shape[1], shape[0] / parts)
