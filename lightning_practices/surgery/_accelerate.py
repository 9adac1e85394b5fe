"""Swap a model's layers for the fused ones, and back."""

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from lightning_practices.nn import Dropout, LayerNorm
from lightning_practices.surgery._report import Replaced, Report, Skipped

# What is fused: a new layer is one more line.
_FUSED: dict[type, type[nn.Module]] = {
    nn.Dropout: Dropout,
    nn.LayerNorm: LayerNorm,
}

# Kept in the instance's ``__dict__``, which deepcopy and pickle carry and ``state_dict`` doesn't.
_MARK = "_accelerated_from"

# A subclass with one of these decides for itself how it runs, is pickled or is subclassed.
_DECIDING = ("forward", "__call__", "__reduce__", "__reduce_ex__", "__init_subclass__")


def accelerate(model: nn.Module) -> Report:
    """Swap each layer of ``model`` for its fused twin in :mod:`lightning_practices.nn`.

    In place, ``model`` itself included, by changing the layer's class and nothing else: the fused
    classes are subclasses with the same state. So parameters, hooks, parametrizations, modes,
    devices, sharing and the references that an optimizer or a caller holds stay as they are, and
    checkpoints go both ways. A compiled model compiles again at its next call. Under autocast on
    a GPU a fused layer norm returns its input's type, where torch's returns float32.

    A subclass of torch's layer is fused too, still an instance of its own class, unless it brings
    its own ``forward``; such layers are listed as skipped. Layers fused already are not listed,
    so calling this again changes nothing. If anything raises, nothing was changed.

    Args:
        model: The model to change.

    Returns:
        What was replaced, and what was skipped and why.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    report = Report()
    plan: list[tuple[nn.Module, type, type]] = []
    for module, names in _named(model):
        original = type_before_parametrizations(module)
        if isinstance(module, tuple(_FUSED.values())) or not (kind := _kind(module)):
            continue
        if reason := _why_not(module, original, kind):
            report.skipped.append(Skipped(names, _public(original), reason))
        else:
            plan.append((module, original, _with_base(module, _fuse(original, kind))))
            report.replaced.append(Replaced(names, _public(original), _public(_FUSED[kind])))
    for module, original, fused in plan:
        _set_class(module, fused)
        module.__dict__[_MARK] = original
    return report


def restore(model: nn.Module) -> Report:
    """Undo :func:`accelerate`: give each layer that it swapped its original class again.

    In place, and only what :func:`accelerate` swapped, also in a copy or after pickling: a layer
    that was built as one of :mod:`lightning_practices.nn` stays so. What scripts or traces a
    model through the sources of its layers (``torch.jit.script``, ``torch.fx``) wants it restored.

    Args:
        model: The model to change.

    Returns:
        What was restored, and what was skipped because its class has been changed since.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    report = Report()
    plan: list[tuple[nn.Module, type]] = []
    for module, names in _named(model):
        original: type | None = module.__dict__.get(_MARK)
        if original is None or not (kind := _kind(module)):
            continue
        now = type_before_parametrizations(module)
        if now is not _fuse(original, kind):
            reason = "its class was changed after it was accelerated"
            report.skipped.append(Skipped(names, _public(type(module)), reason))
        else:
            plan.append((module, _with_base(module, original)))
            report.replaced.append(Replaced(names, _public(_FUSED[kind]), _public(original)))
    for module, cls in plan:
        _set_class(module, cls)
        del module.__dict__[_MARK]
    return report


def _named(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield each module of ``model`` once, with all of its names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}: {model!r}")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, its_names in names.items():
        yield module, tuple(its_names)


def _kind(module: nn.Module) -> type | None:
    """Return which of torch's layers ``module`` is, if it is one that can be fused."""
    for kind in _FUSED:
        scripted = isinstance(module, torch.jit.ScriptModule)
        if isinstance(module, kind) or (scripted and module.original_name == kind.__name__):
            return kind
    return None


def _why_not(module: nn.Module, original: type, kind: type) -> str | None:
    """Return why ``module`` can't be swapped, or ``None`` if it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript has already compiled it"
    if "forward" in module.__dict__:
        return "this instance has its own forward"
    if not issubclass(original, kind):
        return f"its class {type(module).__name__} wraps a parametrized one"
    own = original.__mro__[: original.__mro__.index(kind)]
    for name in _DECIDING:
        for cls in own:
            if name in vars(cls):
                return f"{cls.__name__} overrides {name}"
    if type(original) is not type:
        return f"{original.__name__} has the metaclass {type(original).__name__}"
    return None


@cache
def _fuse(original: type, kind: type) -> type[nn.Module]:
    """Return the fused twin of ``original``: a subclass of it, unless it is torch's own class."""
    fused = _FUSED[kind]
    if original is kind:
        return fused

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        # No module has this class under its name: pickle how to make it.
        return _blank, (original, kind), self.__getstate__()  # type: ignore[no-untyped-call]

    members = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (original, fused), {**members, "__reduce_ex__": reduce})


def _blank(original: type, kind: type) -> nn.Module:
    """Return an instance of the fused twin of ``original``, without any state yet."""
    cls = _fuse(original, kind)
    return cls.__new__(cls)


def _with_base(module: nn.Module, base: type) -> type:
    """Return ``base``, or the class of a parametrized ``module`` put on top of ``base``.

    Parametrizations are properties of a class made for them, and its first base is what
    ``remove_parametrizations`` gives back. Copies of a module share that class: make another.
    """
    if not is_parametrized(module):
        return base
    return type(type(module).__name__, (base,), dict(vars(type(module))))


def _set_class(module: nn.Module, cls: type) -> None:
    """Assign ``module.__class__``, whatever a subclass does in its own ``__setattr__``."""
    object.__setattr__(module, "__class__", cls)


def _public(cls: type) -> str:
    """Return the shortest name that ``cls`` can be imported by, as in ``torch.nn.LayerNorm``."""
    parent = shortest = cls.__module__
    while parent := parent.rpartition(".")[0]:
        if getattr(sys.modules.get(parent), cls.__name__, None) is cls:
            shortest = parent
    return f"{shortest}.{cls.__qualname__}"
