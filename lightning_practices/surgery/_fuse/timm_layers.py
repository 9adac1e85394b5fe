"""Fused classes of timm's layers. Imported only if timm is imported, since timm is optional."""

from typing import Any

from timm import layers
from torch import Tensor
from typing_extensions import override

import lightning_kernels
from lightning_practices import nn as fused  # the classes below have the same names
from lightning_practices.nn import ScheduledRate
from lightning_practices.nn.blocks import ADD_NORMS, AddNorm, add_layer_norm, add_rms_norm


class DropPath(ScheduledRate, layers.DropPath):  # type: ignore[misc]  # untyped
    """timm's stochastic depth, by the fused kernel."""

    rate_name = "drop_prob"

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.scale_by_keep:
            result: Tensor = super().forward(x)
            return result
        return lightning_kernels.stochastic_depth(x, self.current_rate(), "row", self.training)


def _norm(name: str, ours: Any) -> Any:
    """Return the fused class of one of timm's norms: torch's norm with timm's ``fast`` mode."""
    base: Any = getattr(layers, name)

    def forward(self: Any, x: Tensor) -> Tensor:
        result: Tensor = base.forward(self, x) if self._fast_norm else ours.forward(self, x)
        return result

    members = {
        "forward": forward,
        "autocast": ours.autocast,
        "__prepare_scriptable__": ours.__prepare_scriptable__,
        "__module__": __name__,
    }
    return type(name, (base,), members)


def _unless_fast(add_norm: AddNorm) -> AddNorm:
    """Return ``add_norm`` with no call for norms in timm's ``fast`` mode."""

    def call(norm: Any, *args: Any, **options: Any) -> Any:
        return None if norm._fast_norm else add_norm(norm, *args, **options)

    return call


GroupNorm = _norm("GroupNorm", fused.GroupNorm)
GroupNorm1 = _norm("GroupNorm1", fused.GroupNorm)
LayerNorm = _norm("LayerNorm", fused.LayerNorm)
LayerNorm2d = _norm("LayerNorm2d", fused.LayerNorm2d)
RmsNorm = _norm("RmsNorm", fused.RMSNorm)

ADD_NORMS[LayerNorm] = _unless_fast(add_layer_norm)
ADD_NORMS[RmsNorm] = _unless_fast(add_rms_norm)

TWINS = {
    layers.DropPath: DropPath,
    layers.GroupNorm: GroupNorm,
    layers.GroupNorm1: GroupNorm1,
    layers.LayerNorm: LayerNorm,
    layers.LayerNorm2d: LayerNorm2d,
    layers.RmsNorm: RmsNorm,
}

LEFT_ALONE = {
    layers.DropBlock2d: (
        "timm also drops blocks that reach beyond the map, and so another share than the kernels"
    )
}
