"""Swap a model's layers for the fused ones, and back."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torchvision import ops
from torchvision.models import convnext, vision_transformer

from lightning_practices._names import modules_with_names
from lightning_practices.nn import (
    AlphaDropout,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    DropBlock2d,
    DropBlock3d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    EncoderBlock,
    FeatureAlphaDropout,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    RMSNorm,
    ScheduledRate,
    StochasticDepth,
    SyncBatchNorm,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from lightning_practices.surgery._fuse import fold as _fold
from lightning_practices.surgery._fuse import timm as _timm
from lightning_practices.surgery._fuse.report import Folded, Replaced, Report, Skipped

# What is fused: a new layer is one more line.
_FUSED: dict[type, type[nn.Module]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: Dropout1d,
    nn.Dropout2d: Dropout2d,
    nn.Dropout3d: Dropout3d,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: FeatureAlphaDropout,
    ops.StochasticDepth: StochasticDepth,
    ops.DropBlock3d: DropBlock3d,  # a subclass of the next
    ops.DropBlock2d: DropBlock2d,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    convnext.LayerNorm2d: LayerNorm2d,  # a subclass of the next
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
    nn.TransformerDecoderLayer: TransformerDecoderLayer,
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
    vision_transformer.EncoderBlock: EncoderBlock,
}


def _twins() -> dict[type, type[nn.Module]]:
    """Return what is fused, timm's layers included if timm is there."""
    return {**_timm.twins(), **_FUSED}  # timm's first: its norms are subclasses of torch's


# Kept in the instance's ``__dict__``, which deepcopy and pickle carry and ``state_dict`` doesn't.
_MARK = "_fused_from"

# A class with one of these decides for itself how it runs, is pickled or is subclassed.
_DECIDING = ("__call__", "__reduce__", "__reduce_ex__", "__init_subclass__")


def fuse(model: nn.Module) -> Report:
    """Swap each layer of ``model`` for its fused twin in :mod:`lightning_practices.nn`, and fold.

    In place, ``model`` itself included, by changing the layer's class and nothing else: the fused
    classes are subclasses with the same state (only ``SyncBatchNorm`` is none). So parameters,
    hooks, parametrizations, modes, devices, sharing and the references that an optimizer or a
    caller holds stay as they are, and checkpoints go both ways. A compiled model compiles again at
    its next call. Under autocast on a GPU a fused layer or group norm returns its input's type,
    where torch's returns float32.

    A subclass of torch's layer is fused too, still an instance of its own class, unless it brings
    its own ``forward``; such layers are listed as skipped. Layers fused already are not listed,
    so calling this again changes nothing. If anything raises, nothing was changed.

    **Folding.** A batch norm and the activation after it, or the addition and the activation, are
    one call, :meth:`lightning_practices.nn.BatchNorm2d.normalise`, if the forward of the module
    that calls them (the block) can be read by :mod:`torch.fx` and shows that nothing else can
    notice: relu, leaky_relu, elu, selu, silu and exact gelu, as modules or functions. The block
    gets a subclass of its class, with the same children, parameters and state. Before each call
    it makes sure that all is as it was read: its children and attributes, the classes of what is
    left out, hooks (also those on every module), its arguments. If not, it runs the original
    forward. A residual of another shape, type or device is added as before. So a block that reads
    ``self.training`` is folded in the mode in which it was fused. What can't be seen from
    here and stays an assumption: global variables that a forward reads, and what it asks by
    ``type(x)`` or of a layer's output by ``is None``. Copies and pickles are folded anew.

    **Transformers.** Dropout, the addition to the stream and the norm after it are one call,
    :func:`lightning_kernels.add_dropout_layer_norm`, in torch's encoder and decoder layers and in
    the blocks of torchvision's vision transformer: wherever that norm is the same layer's. They
    are among what is replaced; each decides at every call, see
    :class:`lightning_practices.nn.TransformerEncoderLayer`.

    Args:
        model: The model to change.

    Returns:
        What was replaced and folded, and what was not and why.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    report = Report()
    plan: list[tuple[nn.Module, type, type]] = []
    fused: dict[nn.Module, type] = {}
    modules = dict(modules_with_names(model))
    for module, names in modules.items():
        original = type_before_parametrizations(module)
        if isinstance(module, tuple(_twins().values())):
            fused[module] = type(module)
        elif not (kind := _kind(module)):
            continue
        elif reason := _why_not(module, original, kind, ("forward", *_DECIDING)):
            report.skipped.append(Skipped(names, _public(original), reason))
        else:
            fused[module] = _with_base(module, _fuse(original, kind))
            plan.append((module, original, fused[module]))
            report.replaced.append(Replaced(names, _public(original), _public(_twins()[kind])))
    folds = _plan_folds(modules, fused, report)
    for module, original, cls in plan:
        _set_class(module, cls)
        module.__dict__[_MARK] = original
    for block, cls in folds.items():
        _set_class(block, cls)
    return report


def _plan_folds(
    modules: Mapping[nn.Module, tuple[str, ...]], fused: Mapping[nn.Module, type], report: Report
) -> dict[nn.Module, type]:
    """Return the blocks to fold with their new classes, and say in ``report`` what is folded."""
    classes: dict[nn.Module, type] = {}
    for block, names in modules.items():
        norms = {norm: fused[norm] for norm in _fold.own_norms(block) if norm in fused}
        if not norms or any(_fold.folds_of(cls) for cls in type(block).__mro__):
            continue
        if is_parametrized(block):
            reason: str | None = "it is parametrized"
        else:
            reason = _why_not(block, type(block), nn.Module, _DECIDING)
        if reason:
            report.skipped.append(Skipped(names, _public(type(block)), f"not folded: {reason}"))
            continue
        plan = _fold.plan(block, norms)
        for module, reason in plan.refused.items():
            reason = f"not folded: {reason}"
            report.skipped.append(Skipped(modules[module], _public(type(module)), reason))
        if plan.cls is not None:
            report.folded += _folded(names, type(block), plan.folded.items())
            classes[block] = plan.cls
    return classes


def _folded(
    names: tuple[str, ...], block: type, folds: Iterable[tuple[str, str]]
) -> Iterator[Folded]:
    """Yield a report on each of the ``folds`` of a block that is called ``names``."""
    for norm, chain in folds:
        full = tuple(f"{name}.{norm}" if name else norm for name in names)
        yield Folded(full, _public(block), chain)


def unfuse(model: nn.Module) -> Report:
    """Undo :func:`fuse`: give each layer and block that it changed its class again.

    In place, and only what :func:`fuse` swapped, also in a copy or after pickling: a layer
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
    for module, names in modules_with_names(model):
        now = type_before_parametrizations(module)
        if folds := _fold.folds_of(now):
            plan.append((module, _with_base(module, folds.original)))
            report.folded += _folded(names, folds.original, folds.folded)
            continue
        original: type | None = module.__dict__.get(_MARK)
        kind = next((kind for kind in _twins() if original and issubclass(original, kind)), None)
        if original and kind and now is _fuse(original, kind):
            plan.append((module, _with_base(module, original)))
            report.replaced.append(Replaced(names, _public(_twins()[kind]), _public(original)))
        elif kind or any(_fold.folds_of(cls) for cls in now.__mro__):
            reason = "its class was changed after it was fused"
            report.skipped.append(Skipped(names, _public(type(module)), reason))
    for module, cls in plan:
        if isinstance(module, ScheduledRate):
            module.__dict__.pop("rate", None)  # which only the fused class reads
        _set_class(module, cls)
        module.__dict__.pop(_MARK, None)
    return report


def _kind(module: nn.Module) -> type | None:
    """Return which of torch's layers ``module`` is, if it is one that can be fused."""
    for kind in _twins():
        scripted = isinstance(module, torch.jit.ScriptModule)
        if isinstance(module, kind) or (scripted and module.original_name == kind.__name__):
            return kind
        if isinstance(module, LazyModuleMixin) and module.cls_to_become is kind:
            return kind
    return None


def _why_not(
    module: nn.Module, original: type, kind: type, deciding: tuple[str, ...]
) -> str | None:
    """Return why ``module`` can't get a subclass, or ``None`` if it can.

    Args:
        module: The layer or block.
        original: Its class.
        kind: Torch's class that it derives from.
        deciding: What no class between the two may define.
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
            if name in vars(cls) and not _is_ours(cls):
                return f"{cls.__name__} overrides {name}"
    if type(original) is not type:
        return f"{original.__name__} has the metaclass {type(original).__name__}"
    return None


def _is_ours(cls: type) -> bool:
    """Return whether ``cls`` is from this package, whose mixins may well be subclassed."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


@cache
def _fuse(original: type, kind: type) -> type[nn.Module]:
    """Return the fused twin of ``original``: a subclass of it, unless it is torch's own class."""
    fused = _twins()[kind]
    if original is kind:
        return fused

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        # No module has this class under its name: pickle how to make it.
        return _blank, (original, kind), self.__getstate__()  # type: ignore[no-untyped-call]

    members = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {"forward": fused.forward, "__reduce_ex__": reduce}
    return type(original.__name__, (original, fused), {**members, **own})


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
