"""Layers that run one after another. A norm and the activation directly after it are one call."""

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import activation as activations
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn._norm_activation import is_activation, norm_activation, norm_call
from lightning_practices.nn.blocks.block import Chain, FusedBlock


class Sequential(FusedBlock, nn.Sequential):
    """:class:`torch.nn.Sequential`, and its subclasses that inherit its forward."""

    original = nn.Sequential
    sources = {"forward": ("95e8a9b3e99c",), "__iter__": ("bb6893ab34c6",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return chains_of(self._modules.items())

    @override
    def forward(self: Any, input: Any) -> Any:
        if not self.is_original():
            return self.original.forward(self, input)
        return run(tuple(self._modules.values()), input)


def chains_of(layers: Iterable[tuple[str, nn.Module | None]]) -> tuple[Chain, ...]:
    """Return the folds of layers with their names, which are called one after another.

    ``None`` in place of a layer is not called.
    """
    called = ((name, layer) for name, layer in layers if layer is not None)
    return tuple(
        Chain(name, following)
        for (name, norm), (following, layer) in pairwise(called)
        if isinstance(norm, (_NormBase, nn.GroupNorm))
        and (type(layer).__module__ == activations.__name__ or is_activation(layer))
    )


def run(layers: SequenceOf[Any], x: Any) -> Any:
    """Run ``layers`` one after another, and fold each norm with an activation that follows it."""
    place, last = 0, len(layers) - 1
    while place <= last:
        layer = layers[place]
        if (
            place < last
            and norm_call(type(layer)) is not None
            and is_activation(layers[place + 1])
            and isinstance(x, Tensor)
            and lightning_kernels.route(x) != "aten"
        ):
            x = norm_activation(x, layer, layers[place + 1])
            place += 2
        else:
            x = layer(x)
            place += 1
    return x
