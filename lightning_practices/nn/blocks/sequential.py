"""Layers that run one after another. A norm and the activation directly after it are one call.

So are the last addition of a block and the norm that begins the block after it.
"""

from collections.abc import Iterable, Iterator, Mapping
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
from lightning_practices.nn.blocks.pre_norm import next_norm, runs_branches


class Sequential(FusedBlock, nn.Sequential):
    """:class:`torch.nn.Sequential`, and its subclasses that inherit its forward.

    Two blocks in a row hand over the normalised input of the second. So the second block is not
    called with its input alone, but by :meth:`PreNormBlock.run_branches`.
    """

    original = nn.Sequential
    sources = {"forward": ("95e8a9b3e99c",), "__iter__": ("bb6893ab34c6",)}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return chains_of(self._modules.items())

    @classmethod
    @override
    def added_norms(
        cls, block: nn.Module, classes: Mapping[nn.Module, type]
    ) -> Iterator[tuple[str, str]]:
        for (_, first), (name, second) in pairwise(block._modules.items()):
            if first is None or second is None:
                continue
            its_class: Any = classes.get(second, type(second))
            if runs_branches(first, classes.get(first)) and runs_branches(second, its_class):
                yield f"{name}.{its_class.branches[0].norm}", "add"

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
    """Run ``layers`` one after another, and fold norms with what is before or after them."""
    place, last = 0, len(layers) - 1
    y: Tensor | None = None  # ``x`` after the norm that begins the next block, where that is known
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
            continue
        following = next_norm(layer, layers[place + 1], x) if place < last else None
        if y is None and following is None:
            x = layer(x)
        else:
            x, y = layer.run_branches(x, y, following)
        place += 1
    return x
