"""Replace a model's layers by fused layers, and undo it."""

import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    type_before_parametrizations,
)

from lightning_practices._names import modules_with_names
from lightning_practices.nn import ScheduledRate
from lightning_practices.nn.blocks import (
    FUSED_FROM,
    FusedBlock,
    folds_of,
    norm_call,
    unknown_method,
)
from lightning_practices.surgery._fuse.report import Folded, Replaced, Report, Skipped
from lightning_practices.surgery._fuse.twins import Classes, left_alone, twin_of, twins

# Methods that define how a class is called, pickled or subclassed. A class that overrides one of
# them is not fused.
_DECIDING = ("__call__", "__reduce__", "__reduce_ex__", "__init_subclass__")

# Words in the name of a class, in lower case, that tell a norm or a dropout without a fused class.
_NAMED_FOR = ("norm", "drop")

Modules = Mapping[nn.Module, tuple[str, ...]]  # each module of a model, and all its names


class _Swap(NamedTuple):
    """The class of a module (without its parametrizations), and the fused class that it gets."""

    original: type
    fused: type


def fuse(model: nn.Module) -> Report:
    """Replace layers of ``model`` by fused layers, and fold norms with the operations after them.

    The fused layers are those of :mod:`lightning_practices.nn`. The change is in place and includes
    ``model`` itself. It changes only the class of each layer: the fused classes are subclasses with
    the same state (only ``SyncBatchNorm`` is not a subclass).
    Parameters, hooks, parametrizations, modes, devices, shared layers, and references that an
    optimizer or a caller holds are not affected, and a fused model and a plain model load each
    other's checkpoints. A compiled model is recompiled at its next call. Under autocast on a GPU a
    fused layer norm or group norm returns the dtype of its input, where torch's returns float32.

    A subclass of torch's layer is fused too, and stays an instance of its own class. If it has its
    own ``forward``, it is not fused, and the report lists it as skipped. Layers that are already
    fused are not listed, so a second call changes nothing. After an error the model is unchanged.

    **transformers.** Its models define norms and stochastic depths anew in each file. Such a layer
    is replaced if the source code of its ``forward`` is known: the RMS norms of Llama, Mistral,
    Qwen, Phi-3, Mixtral, Mamba, OLMo, Gemma and T5, the layer norms of Cohere, DeBERTa, ConvNeXt
    and SAM, the ``DropPath`` of Swin and DINOv2, and all layers that are written like them. The
    result has the dtype of the original result. In half precision it is rounded once, where most
    originals round before and after the multiplication by the weight. Where the kernels don't run
    (see :func:`lightning_kernels.route`), the original forward runs.

    **Folding.** A norm and the operations after it (an activation, or the addition of a residual
    and an activation) are one call in blocks whose forward is known. These blocks are

    - any :class:`torch.nn.Sequential` with a batch, group or instance norm directly before an
      activation, and its subclasses, such as torchvision's ``Conv2dNormActivation``;
    - torchvision's ResNets, DenseNets, the convolutions of GoogLeNet and Inception, and backbones
      of detection and segmentation;
    - timm's ResNets, DLA, HGNet, Xception, ``BatchNormAct2d``, ``GroupNormAct`` and all blocks that
      use them, also as backbones with ``features_only=True``;
    - the convolutions of transformers' ResNet, RegNet, MobileNet, MobileViT, EfficientNet, RT-DETR,
      Wav2Vec2-Conformer and others written like them, and MONAI's ResNets;
    - your own classes, see :func:`register_block`. Blocks that you write with
      ``lightning_practices.nn.BatchNorm2d(activation="relu")`` need no folding.

    The activations are relu, relu6, leaky_relu, elu, selu, silu, hardswish and exact gelu. A
    folded block gets a subclass of its class with the same state. The subclass's forward was
    written for one version of the source code of the original forward. If the library has another
    version, or if a subclass or an instance of the block has its own forward, the block is not
    folded, and the report lists it as skipped. Each call checks for later changes: hooks, including
    global hooks, the classes of norm and activation, and the forward of the block's class. After a
    change, and where the kernels don't run (see :func:`lightning_kernels.route`), the layers run
    one by one as before.

    **Transformers.** Dropout, the addition to the residual stream and the norm after it are one
    call, :func:`lightning_kernels.add_dropout_layer_norm`. This applies to torch's encoder and
    decoder layers and to the blocks of torchvision's vision transformer, wherever the norm belongs
    to the same layer. The report lists them as replaced layers, see
    :class:`lightning_practices.nn.TransformerEncoderLayer`.

    Args:
        model: The model to change.

    Returns:
        A report of the replaced layers, the folded norms, the skipped layers with reasons, and the
        norms and dropouts that no fused class serves.

    Raises:
        TypeError: If ``model`` is not a module.

    Example:
        >>> model = torchvision.models.resnet18()
        >>> fuse(model)
        Report(20 replaced, 17 folded, 0 skipped)
    """
    report = Report()
    modules = dict(modules_with_names(model))
    table = twins(map(type, modules))
    plan = _plan_layers(modules, table, report)
    plan |= _plan_blocks(modules, table, plan, report)
    report.not_served += _not_served(modules, table, plan, report)
    order = {names: place for place, names in enumerate(modules.values())}
    report.replaced.sort(key=lambda replaced: order[replaced.names])
    for module, swap in plan.items():
        _set_class(module, swap.fused)
        module.__dict__[FUSED_FROM] = swap.original
    return report


def _plan_layers(modules: Modules, table: Classes, report: Report) -> dict[nn.Module, _Swap]:
    """Return the layers to replace, and list them and the skipped layers in ``report``."""
    plan: dict[nn.Module, _Swap] = {}
    other = left_alone()
    for module, names in modules.items():
        original, kind = type_before_parametrizations(module), _kind(module, table)
        if reason := next((why for cls, why in other.items() if isinstance(module, cls)), None):
            report.skipped.append(Skipped(names, _public(original), reason))
        if kind is None or issubclass(table[kind], FusedBlock) or _is_fused(module, table):
            continue
        if reason := _why_not(module, original, kind, table[kind], ("forward", *_DECIDING)):
            report.skipped.append(Skipped(names, _public(original), reason))
        else:
            plan[module] = _Swap(original, _with_base(module, twin_of(original, kind)))
            report.replaced.append(Replaced(names, _public(original), _public(table[kind])))
    return plan


def _plan_blocks(
    modules: Modules, table: Classes, layers: Mapping[nn.Module, _Swap], report: Report
) -> dict[nn.Module, _Swap]:
    """Return the blocks to change, and list folded and skipped norms and blocks in ``report``."""
    plan: dict[nn.Module, _Swap] = {}
    classes = {layer: swap.fused for layer, swap in layers.items()}
    for module, names in modules.items():
        kind = _kind(module, table)
        if _is_fused(module, table) or (kind and not issubclass(table[kind], FusedBlock)):
            continue
        if kind is None:
            if _normalises(module, classes):
                reason = "no fused forward is known for its class, see surgery.register_block"
                report.skipped.append(_not_folded(module, names, reason))
            continue
        twin: Any = table[kind]
        original = type_before_parametrizations(module)
        folded, refused = folds_of(twin, module, classes)
        if not folded and folded is not None and not refused:
            continue
        if refusal := _why_not_block(module, original, kind, twin):
            skipped = _not_folded(module, names, refusal)
            if not any(module.children()):  # a layer, which has nothing to fold
                skipped = Skipped(names, skipped.cls, refusal)
            report.skipped.append(skipped)
            continue
        for name, why in refused.items():
            norm = module.get_submodule(name)
            report.skipped.append(_not_folded(norm, modules[norm], why))
        report.folded += _folded(module, names, original, folded or {})
        if is_layer := _is_listed(module, folded):
            report.replaced.append(Replaced(names, _public(original), _shown(twin)))
        if folded or is_layer:
            plan[module] = _Swap(original, _with_base(module, twin_of(original, kind)))
    return plan


def _not_served(
    modules: Modules, table: Classes, plan: Mapping[nn.Module, _Swap], report: Report
) -> Iterator[Skipped]:
    """Yield a report entry for each norm and each dropout that has no fused class.

    Such a layer is known by the name of its class, and has no children.
    """
    skipped = {layer.names for layer in report.skipped}
    lists = [module for module in modules if isinstance(module, ParametrizationList)]
    parametrizations = {child for each in lists for child in each}  # such as torch's `_WeightNorm`
    for module, names in modules.items():
        cls = type_before_parametrizations(module)
        named = any(word in cls.__name__.lower() for word in _NAMED_FOR)
        if not named or any(module.children()) or module in plan or names in skipped:
            continue
        if not (_is_fused(module, table) or _is_ours(cls) or module in parametrizations):
            yield Skipped(names, _public(cls), "no fused class is known for it")


def _is_listed(module: nn.Module, folded: Mapping[str, str] | None) -> bool:
    """Return whether to report a block as replaced: it is a norm, or its folds are unknown."""
    return folded is None or isinstance(module, _BatchNorm | nn.GroupNorm)


def _normalises(module: nn.Module, classes: Mapping[nn.Module, type]) -> bool:
    """Return whether a module has its own forward, and children that are fused batch norms."""
    if isinstance(module, torch.jit.ScriptModule) or type(module).forward is nn.Module.forward:
        return False
    return any(
        isinstance(child, _BatchNorm) and norm_call(classes.get(child, type(child))) is not None
        for child in module.children()
    )


def _not_folded(module: nn.Module, names: tuple[str, ...], reason: str) -> Skipped:
    cls = type_before_parametrizations(module)
    return Skipped(names, _public(cls), f"not folded: {reason}")


def _folded(
    module: nn.Module, names: tuple[str, ...], block: type, folds: Mapping[str, str]
) -> Iterator[Folded]:
    """Yield a report entry for each of the ``folds`` of a block with the given names and class."""
    for own, chain in folds.items():
        full = tuple(".".join(filter(None, (name, own))) for name in names)
        norm = module.get_submodule(own)
        before = norm.__dict__.get(FUSED_FROM, type_before_parametrizations(norm))
        yield Folded(full, _public(before), _public(block), chain)


def unfuse(model: nn.Module) -> Report:
    """Undo :func:`fuse`: restore the class of each layer and block that it changed.

    The change is in place. It affects only modules that :func:`fuse` has changed, including their
    copies and pickles. A layer that was created as a layer of :mod:`lightning_practices.nn` keeps
    its class. Unfuse a model before ``torch.jit.script``, ``torch.fx.symbolic_trace`` or
    ``torch.ao.quantization.fuse_modules``, which know torch's own layers alone. For a fused class
    the last of them says ``did not find fuser method``. Fused models work with
    ``torch.jit.trace``, ``torch.export`` and ``torch.compile``.

    Args:
        model: The model to change.

    Returns:
        A report of the restored layers, and of the layers skipped because their class has changed.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    report = Report()
    modules = dict(modules_with_names(model))
    table = twins(map(type, modules))
    plan: list[tuple[nn.Module, type]] = []
    for module, names in modules.items():
        original: type | None = module.__dict__.get(FUSED_FROM)
        kind = original and next((cls for cls in original.__mro__ if cls in table), None)
        if original is None or kind is None:
            continue
        if type_before_parametrizations(module) is not twin_of(original, kind):
            reason = "its class was changed after it was fused"
            report.skipped.append(Skipped(names, _public(type(module)), reason))
            continue
        plan.append((module, _with_base(module, original)))
        folded = folds_of(type(module), module, {})[0] if isinstance(module, FusedBlock) else None
        report.folded += _folded(module, names, original, folded or {})
        if _is_listed(module, folded):
            report.replaced.append(Replaced(names, _shown(table[kind]), _public(original)))
    for module, cls in plan:
        if isinstance(module, ScheduledRate):
            module.__dict__.pop("rate", None)  # an attribute that only the fused class reads
        _set_class(module, cls)
        module.__dict__.pop(FUSED_FROM, None)
    return report


def _is_fused(module: nn.Module, table: Classes) -> bool:
    return isinstance(module, tuple(table.values()))


def _kind(module: nn.Module, table: Classes) -> type | None:
    """Return the class in ``table`` that is nearest to the class of ``module``, or ``None``."""
    if isinstance(module, torch.jit.ScriptModule):
        named = (cls for cls in table if cls.__name__ == module.original_name)
        return next((cls for cls in named if not issubclass(table[cls], FusedBlock)), None)
    if isinstance(module, LazyModuleMixin) and module.cls_to_become in table:
        return module.cls_to_become
    return next((cls for cls in type(module).__mro__ if cls in table), None)


def _why_not(
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
            if name in vars(cls) and not _is_ours(cls):
                return f"{cls.__name__} overrides {name}"
    if type(original) is not type:
        return f"{original.__name__} has the metaclass {type(original).__name__}"
    state = vars(module), module._modules, module._parameters, module._buffers
    theirs = [*state, *(vars(cls) for cls in own if not _is_ours(cls))]
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


def _is_ours(cls: type) -> bool:
    """Return whether ``cls`` is from this package, whose mixins may override methods."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _why_not_block(
    module: nn.Module, original: type, kind: type, twin: type[FusedBlock]
) -> str | None:
    """Return why a block can't get the fused class ``twin``, or ``None`` if it can."""
    methods = [name for name, _ in twin.methods]
    if reason := _why_not(module, original, kind, twin, (*methods, *_DECIDING)):
        return reason
    method = unknown_method(twin)
    if method is None:
        return None
    return f"{_public(kind)}.{method} is not the one that the fused forward was written for"


def _with_base(module: nn.Module, base: type) -> type:
    """Return ``base``. For a parametrized ``module``, return its class rebuilt with this base.

    A parametrized module has a class of its own, whose properties are the parametrizations and
    whose first base ``remove_parametrizations`` restores. Copies of the module share this class, so
    it is not modified but rebuilt.
    """
    if not is_parametrized(module):
        return base
    return type(type(module).__name__, (base,), dict(vars(type(module))))


def _set_class(module: nn.Module, cls: type) -> None:
    """Assign ``module.__class__``, bypassing the module's own ``__setattr__``."""
    object.__setattr__(module, "__class__", cls)


def _shown(twin: type[nn.Module]) -> str:
    """Return the name of a fused class, or of the forward that was registered for a block."""
    forward: Any = twin.forward
    if issubclass(twin, FusedBlock) and not twin.sources:
        return f"{forward.__module__}.{forward.__qualname__}"
    return _public(twin)


def _public(cls: type) -> str:
    """Return the shortest name under which ``cls`` can be imported, as ``torch.nn.LayerNorm``."""
    parent = shortest = cls.__module__
    while parent := parent.rpartition(".")[0]:
        if getattr(sys.modules.get(parent), cls.__name__, None) is cls:
            shortest = parent
    return f"{shortest}.{cls.__qualname__}"
