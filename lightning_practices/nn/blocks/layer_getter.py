"""torchvision's backbones of detection and segmentation: named layers with results of some."""

from collections import OrderedDict
from typing import Any

from torch import Tensor
from torchvision.models._utils import IntermediateLayerGetter as Original
from typing_extensions import override

from lightning_practices.nn.blocks.block import Chain, FusedBlock
from lightning_practices.nn.blocks.sequential import chains_of, run


class IntermediateLayerGetter(FusedBlock, Original):  # type: ignore[misc]  # untyped
    """The layers of a backbone up to the last of its results, one after another."""

    original = Original
    sources = {"forward": ("b0287c1eb639",)}

    @override
    def chains(self: Any) -> tuple[Chain, ...]:
        return kept_apart(self)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x)
        found: OrderedDict[str, Tensor] = OrderedDict()
        layers = []
        for name, layer in self.items():
            layers.append(layer)
            if name in self.return_layers:
                found[self.return_layers[name]] = x = run(layers, x)
                layers = []
        run(layers, x)  # the original runs layers after the last result too
        return found


def kept_apart(layers: Any) -> tuple[Chain, ...]:
    """Return the folds of ``layers``, a ``ModuleDict``, except for norms that are results."""
    return tuple(c for c in chains_of(layers.items()) if c.norm not in layers.return_layers)
