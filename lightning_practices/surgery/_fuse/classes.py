"""Change the class of a module, and change it back."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from lightning_practices.nn import ScheduledRate
from lightning_practices.nn.blocks import FUSED_FROM, LEFT
from lightning_practices.surgery._fuse.twins import Classes, twin_of


def with_base(module: nn.Module, base: type) -> type:
    """Return ``base``. For a parametrized ``module``, return its class rebuilt with this base.

    A parametrized module has a class of its own, whose properties are the parametrizations and
    whose first base ``remove_parametrizations`` restores. Copies of the module share this class, so
    it is not modified but rebuilt.
    """
    if not is_parametrized(module):
        return base
    return type(type(module).__name__, (base,), dict(vars(type(module))))


def give(module: nn.Module, original: type, cls: type) -> None:
    """Give ``module`` the fused class ``cls``, and note its ``original`` class."""
    set_class(module, cls)
    module.__dict__[FUSED_FROM] = original


def kind_of(module: nn.Module, table: Classes) -> type | None:
    """Return the class in ``table`` for which ``module`` was fused, or ``None`` if it was not."""
    original: type | None = module.__dict__.get(FUSED_FROM)
    return original and next((cls for cls in original.__mro__ if cls in table), None)


def is_changed(module: nn.Module, kind: type) -> bool:
    """Return whether the class of a fused module was changed after it was fused."""
    original = module.__dict__[FUSED_FROM]
    return type_before_parametrizations(module) is not twin_of(original, kind)


def plain_class(module: nn.Module) -> type:
    """Return the class that a fused module had before."""
    return with_base(module, module.__dict__[FUSED_FROM])


def restore(module: nn.Module) -> None:
    """Give a fused module the class that it had before."""
    state: dict[str, Any] = module.__dict__
    cls = plain_class(module)
    if isinstance(module, ScheduledRate):
        state.pop("rate", None)  # an attribute that only the fused class reads
    set_class(module, cls)
    del state[FUSED_FROM]


def snapshot(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, type, dict[str, Any]]]:
    """Return the class of each module, and what fusing has noted in it."""
    keys = (FUSED_FROM, LEFT)
    return [
        (module, type(module), {key: vars(module)[key] for key in keys if key in vars(module)})
        for module in modules
    ]


def bring_back(before: Iterable[tuple[nn.Module, type, dict[str, Any]]]) -> None:
    """Undo all changes since :func:`snapshot`."""
    for module, cls, noted in before:
        if type(module) is not cls:
            set_class(module, cls)
        for key in (FUSED_FROM, LEFT):
            vars(module).pop(key, None)
        vars(module).update(noted)


def set_class(module: nn.Module, cls: type) -> None:
    """Assign ``module.__class__``, bypassing the module's own ``__setattr__``."""
    object.__setattr__(module, "__class__", cls)
