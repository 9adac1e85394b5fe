"""timm's norms that include an activation."""

from typing import Any

from timm.layers import activations, norm_act
from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn._batch_norm import FusedBatchNorm
from lightning_practices.nn._hooks import any_hook_on_all
from lightning_practices.nn._norm_activation import (
    add_activation,
    kernel_activation,
    passes_on,
)
from lightning_practices.nn.blocks.block import Chain, FusedBlock, fingerprint

if fingerprint(activations.GELU.forward) == "842e096e5792":
    add_activation(activations.GELU, "gelu")


class BatchNormAct2d(FusedBlock, FusedBatchNorm, norm_act.BatchNormAct2d):  # type: ignore[misc]
    """A batch norm, a dropout layer and an activation."""

    original = norm_act.BatchNormAct2d
    sources = {"forward": ("aab01662c2e6",)}

    @override
    def chains(self) -> tuple[Chain, ...] | None:
        return _chains(self)

    @override
    def forward(self: Any, x: Tensor) -> Any:  # type: ignore[override]  # takes no residual
        if not self.folds(x):
            return self.original.forward(self, x)
        known = _activation(self)
        if known is not None:
            return self.normalise(x, None, *known)
        return self.act(self.drop(self.normalise(x, None, None, None)))


class GroupNormAct(FusedBlock, norm_act.GroupNormAct):  # type: ignore[misc]  # untyped
    """A group norm, a dropout layer and an activation."""

    original = norm_act.GroupNormAct
    sources = {"forward": ("6cbfa0e71705",)}

    @override
    def chains(self) -> tuple[Chain, ...] | None:
        return _chains(self)

    @override
    def forward(self: Any, x: Tensor) -> Any:
        if self._fast_norm or not self.folds(x):
            return self.original.forward(self, x)
        known = _activation(self)
        y = lightning_kernels.group_norm(
            x, self.num_groups, self.weight, self.bias, self.eps, *(known or ())
        )
        return self.act(self.drop(y)) if known is None else y


class GroupNorm1Act(FusedBlock, norm_act.GroupNorm1Act):  # type: ignore[misc]  # untyped
    """:class:`GroupNormAct` with one group."""

    original = norm_act.GroupNorm1Act
    sources = {"forward": ("6cbfa0e71705",)}
    chains = GroupNormAct.chains
    forward = GroupNormAct.forward


def _chains(norm: Any) -> tuple[Chain, ...] | None:
    return None if isinstance(norm.act, nn.Identity) else (Chain("", "act", between=("drop",)),)


def _activation(norm: Any) -> tuple[str, float | None] | None:
    """Return the activation to fold into the call of ``norm``, or ``None`` if it can't be."""
    if any_hook_on_all() or not passes_on(norm.drop):
        return None
    return kernel_activation(norm.act)
