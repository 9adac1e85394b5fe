"""The fused class ("twin") of each layer class and block class, and of their subclasses."""

import functools
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from threading import RLock
from typing import Any

from torch import nn
from torchvision import ops

from lightning_practices import nn as fused
from lightning_practices._arguments import check_callable, shown
from lightning_practices.nn.blocks import ADD_NORMS, FusedBlock, fused_blocks
from lightning_practices.surgery._fuse import (
    transformers_convolutions,
    transformers_decoders,
    transformers_encoders,
    transformers_layers,
    transformers_post_norm,
)
from lightning_practices.surgery._fuse.transformers_forms import Form, form_of
from lightning_practices.surgery._fuse.transformers_layers import FusedNorm

Classes = dict[type, type[nn.Module]]

# The fused class of each layer class. A new layer needs one more line here.
_LAYERS: Classes = {
    nn.Dropout: fused.Dropout,
    nn.Dropout1d: fused.Dropout1d,
    nn.Dropout2d: fused.Dropout2d,
    nn.Dropout3d: fused.Dropout3d,
    nn.AlphaDropout: fused.AlphaDropout,
    nn.FeatureAlphaDropout: fused.FeatureAlphaDropout,
    ops.StochasticDepth: fused.StochasticDepth,
    ops.DropBlock2d: fused.DropBlock2d,
    ops.DropBlock3d: fused.DropBlock3d,
    nn.GroupNorm: fused.GroupNorm,
    nn.InstanceNorm1d: fused.InstanceNorm1d,
    nn.InstanceNorm2d: fused.InstanceNorm2d,
    nn.InstanceNorm3d: fused.InstanceNorm3d,
    nn.LayerNorm: fused.LayerNorm,
    nn.RMSNorm: fused.RMSNorm,
    nn.BatchNorm1d: fused.BatchNorm1d,
    nn.BatchNorm2d: fused.BatchNorm2d,
    nn.BatchNorm3d: fused.BatchNorm3d,
    nn.SyncBatchNorm: fused.SyncBatchNorm,
    nn.TransformerDecoderLayer: fused.TransformerDecoderLayer,
    nn.TransformerEncoderLayer: fused.TransformerEncoderLayer,
}
_FORMS = (
    *transformers_layers.FORMS,
    *transformers_convolutions.FORMS,
    *transformers_post_norm.FORMS,
    *transformers_decoders.FORMS,
    *transformers_encoders.FORMS,
)
_registered: Classes = {}
_by_source: Classes = {}  # of classes whose source code is known
_of_subclasses: dict[tuple[type, type], type[nn.Module]] = {}
_lock = RLock()  # so that two threads that fuse at the same time get the same class


def twins(classes: Iterable[type] = ()) -> Classes:
    """Return the fused class of each class that can be fused, for all imported libraries.

    Args:
        classes: Classes to look up by their source code, with their bases. The result has those
            that are known.
    """
    found: Classes = {**_LAYERS, **fused_blocks()}
    if "torchvision.models" in sys.modules:
        from torchvision.models import convnext

        found[convnext.LayerNorm2d] = fused.LayerNorm2d
    found |= _of_timm("TWINS")
    for cls in {base for each in classes for base in each.__mro__}:
        if twin := _twin_by_source(cls):
            found[cls] = twin
    return found | _registered


def left_alone() -> dict[type, str]:
    """Return the classes for which the kernels would compute something else, and why."""
    return _of_timm("LEFT_ALONE")


def _twin_by_source(cls: type) -> type[nn.Module] | None:
    """Return the fused class of a class of transformers, or ``None`` if its source is unknown."""
    with _lock:
        if cls not in _by_source:
            form = form_of(cls, _FORMS)
            if form is None:
                return None
            _by_source[cls] = _written_as(cls, form)
        return _by_source[cls]


def _written_as(cls: type, form: Form) -> type[nn.Module]:
    members = {
        "forward": form.forward,
        "original": cls,
        "sources": form.sources,
        "__module__": form.forward.__module__,
        **form.members,
    }
    twin = _subclass(cls, cls, (form.base, cls), members)
    if issubclass(twin, FusedNorm) and "call" in form.members:
        ADD_NORMS[twin] = twin.add
    return twin


def _of_timm(table: str) -> dict[type, Any]:
    if "timm.layers" not in sys.modules:
        return {}
    found: dict[type, Any] = getattr(import_module(f"{__package__}.timm_layers"), table)
    return found


def register_block(block: type[nn.Module], forward: Callable[..., Any]) -> None:
    """Register a fused forward for a block class. :func:`fuse` then uses it for its instances.

    ``forward`` has the arguments and the result of the block's own forward. For each norm before an
    activation it calls :func:`lightning_practices.nn.norm_activation`, which folds both into one
    call where this has no side effects, and otherwise calls them one by one. ``forward`` also runs
    for subclasses of ``block`` that inherit the forward. If the forward of the class is changed
    after the registration, the changed forward runs instead.

    Register a block where its class is defined, before a model with such blocks is fused. A process
    that unpickles a fused block needs the registration too; without it the block is plain.

    Args:
        block: Class of the block.
        forward: Fused forward, a function of the block and its inputs.

    Raises:
        TypeError: If ``block`` is not a class of modules, or ``forward`` is not callable.
        ValueError: If the class already has a fused forward, or has no forward.

    Example:
        >>> from lightning_practices.nn import norm_activation
        >>> from lightning_practices.surgery import fuse, register_block
        >>> class Residual(nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        ...         self.norm, self.act = nn.BatchNorm2d(channels), nn.SiLU()
        ...     def forward(self, x):
        ...         return self.act(self.norm(self.conv(x)) + x)
        >>> def fused_forward(self, x):
        ...     return norm_activation(self.conv(x), self.norm, self.act, residual=x)
        >>> register_block(Residual, fused_forward)
        >>> fuse(Residual(8))
        Report(2 replaced, 0 folded, 0 skipped)
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise TypeError(f"block has to be a class of torch.nn.Module, but got {shown(block)}")
    if block.forward is nn.Module.forward:
        raise ValueError(f"block must have a forward, but {block.__name__} has none")
    check_callable("forward", forward, "a function of the block and its inputs")
    with _lock:
        if block in twins([block]):
            raise ValueError(f"{block.__name__} has a fused forward already")

        @functools.wraps(forward)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            chosen = forward if self.is_original() else self.original.forward
            return chosen(self, *args, **kwargs)

        members = {"forward": run, "original": block, "methods": (("forward", block.forward),)}
        _registered[block] = _subclass(block, block, (FusedBlock, block), members)


def twin_of(original: type, kind: type) -> type[nn.Module]:
    """Return the fused class of ``original``: that of ``kind``, or a subclass of both classes."""
    twin = twins([kind])[kind]
    if original is kind:
        return twin
    with _lock:
        if (original, kind) not in _of_subclasses:
            is_block = issubclass(twin, FusedBlock)
            members = {"original": original} if is_block else {"forward": twin.forward}
            _of_subclasses[original, kind] = _subclass(original, kind, (original, twin), members)
        return _of_subclasses[original, kind]


def _subclass(
    original: type, kind: type, bases: tuple[type, ...], members: dict[str, Any]
) -> type[nn.Module]:
    """Return a new class with the name, module and docstring of ``original``."""

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        # The class can't be imported under its name, so pickle the function that makes it.
        return _blank, (original, kind), self.__getstate__()  # type: ignore[no-untyped-call]

    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, bases, {**names, **members, "__reduce_ex__": reduce})


def _blank(original: type, kind: type) -> nn.Module:
    """Return an instance of the fused class of ``original``, without any state yet."""
    # In this process the block may not be registered.
    cls: Any = twin_of(original, kind) if kind in twins([kind]) else original
    module: nn.Module = cls.__new__(cls)
    return module
