"""Fused twins of timm's layers, made when timm is there: it is not a requirement."""

import sys
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor, nn

import lightning_kernels
from lightning_practices import nn as fused  # no layer by its name: the twins have those

_NORMALISER = 1e-7  # timm's, beside the number of kept elements
_NORMS: dict[str, Any] = {
    "GroupNorm": fused.GroupNorm,
    "GroupNorm1": fused.GroupNorm,
    "LayerNorm": fused.LayerNorm,
    "LayerNorm2d": fused.LayerNorm2d,
    "RmsNorm": fused.RMSNorm,
}


def twins() -> dict[type, type[nn.Module]]:
    """Return the twin of each of timm's layers; a model that has one has imported timm."""
    layers = sys.modules.get("timm.layers")
    if layers is None:
        return {}
    norms = {getattr(layers, name): _norm(layers, name) for name in _NORMS}
    drop_path, drop_block = _drop_path(layers), _drop_block(layers)
    return {layers.DropPath: drop_path, layers.DropBlock2d: drop_block, **norms}


def __getattr__(name: str) -> type[nn.Module]:
    """Find a twin under its name, as unpickling does."""
    makers = {"DropPath": _drop_path, "DropBlock2d": _drop_block}
    if name not in makers and name not in _NORMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import timm.layers

    return makers[name](timm.layers) if name in makers else _norm(timm.layers, name)


@cache
def _drop_path(layers: ModuleType) -> type[nn.Module]:
    base: Any = layers.DropPath

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.scale_by_keep:
            result: Tensor = base.forward(self, x)
            return result
        return lightning_kernels.stochastic_depth(x, self.current_rate(), "row", self.training)

    return _twin("DropPath", base, forward)


@cache
def _drop_block(layers: ModuleType) -> type[nn.Module]:
    base: Any = layers.DropBlock2d

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.with_noise or self.gamma_scale != 1 or not self.scale_by_keep:
            result: Tensor = base.forward(self, x)
            return result
        return lightning_kernels.drop_block2d(
            x, self.current_rate(), self.block_size, self.inplace, _NORMALISER, self.training,
            per_channel=not self.couple_channels,
        )  # fmt: skip

    return _twin("DropBlock2d", base, forward)


@cache
def _norm(layers: ModuleType, name: str) -> type[nn.Module]:
    """Return the twin of one of timm's norms, which are torch's but for the ``fast`` mode."""
    base: Any = getattr(layers, name)
    ours = _NORMS[name]

    def forward(self: Any, x: Tensor) -> Tensor:
        result: Tensor = base.forward(self, x) if self._fast_norm else ours.forward(self, x)
        return result

    members = {"forward": forward, "autocast": ours.autocast, "__module__": __name__}
    return type(name, (base,), members)


def _twin(name: str, base: type, forward: Any) -> type[nn.Module]:
    members = {"forward": forward, "rate_name": "drop_prob", "__module__": __name__}
    return type(name, (fused.ScheduledRate, base), members)
