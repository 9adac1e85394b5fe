"""Why a module can't get a fused class."""

import functools
import sys

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from lightning_practices.nn.blocks import DECIDING, FusedBlock, unknown_method


def why_not(
    module: nn.Module, original: type, kind: type, twin: type, deciding: tuple[str, ...]
) -> str | None:
    """Return why ``module`` can't get a fused subclass, or ``None`` if it can.

    Args:
        module: The layer or block.
        original: Class of the module.
        kind: The library's class from which ``original`` is derived.
        twin: Fused class for ``kind``.
        deciding: Methods that ``original`` may not override.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript has already compiled it"
    if isinstance(module, LazyModuleMixin):
        return "it has no parameters yet: run a batch through the model first"
    if "forward" in module.__dict__:
        return "this instance has its own forward"
    if not issubclass(original, kind):
        return f"its class {type(module).__name__} wraps a parametrized one"
    own = original.__mro__[: original.__mro__.index(kind)]
    for name in deciding:
        for cls in own:
            if name in vars(cls) and not is_ours(cls):
                return f"{cls.__name__} overrides {name}"
    if type(original) is not type:
        return f"{original.__name__} has the metaclass {type(original).__name__}"
    state = vars(module), module._modules, module._parameters, module._buffers
    theirs = [*state, *(vars(cls) for cls in own if not is_ours(cls))]
    for name in _added_names(kind, twin):
        if any(name in names for names in theirs):
            return f"it has an attribute {name!r}, which means something else to a fused layer"
    return None


@functools.cache
def _added_names(kind: type, twin: type) -> tuple[str, ...]:
    """Return the attributes that ``twin`` adds to those of ``kind``, without its properties."""
    added = (cls for cls in twin.__mro__ if not issubclass(kind, cls))
    names = {name: value for cls in added for name, value in vars(cls).items()}
    return tuple(
        name
        for name, value in names.items()
        if not (name.startswith("__") or hasattr(kind, name) or isinstance(value, property))
    )


def is_ours(cls: type) -> bool:
    """Return whether ``cls`` is from this package, whose mixins may override methods."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def why_not_block(
    module: nn.Module, original: type, kind: type, twin: type[FusedBlock]
) -> str | None:
    """Return why a block can't get the fused class ``twin``, or ``None`` if it can."""
    methods = [name for name, _ in twin.methods]
    if reason := why_not(module, original, kind, twin, (*methods, *DECIDING)):
        return reason
    method = unknown_method(twin)
    if method is None:
        return None
    return f"{public_name(kind)}.{method} is not the one that the fused forward was written for"


def public_name(cls: type) -> str:
    """Return the shortest name under which ``cls`` can be imported, as ``torch.nn.LayerNorm``."""
    parent = shortest = cls.__module__
    while parent := parent.rpartition(".")[0]:
        if getattr(sys.modules.get(parent), cls.__name__, None) is cls:
            shortest = parent
    return f"{shortest}.{cls.__qualname__}"
