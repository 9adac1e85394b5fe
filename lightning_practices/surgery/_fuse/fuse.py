"""Replace a model's layers by fused layers, and undo it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from lightning_practices._names import modules_with_names
from lightning_practices.nn.blocks import (
    DECIDING,
    FUSED_FROM,
    LEFT,
    FusedBlock,
    folds_of,
    norm_call,
)
from lightning_practices.surgery._fuse.classes import (
    bring_back,
    give,
    is_changed,
    kind_of,
    restore,
    snapshot,
    with_base,
)
from lightning_practices.surgery._fuse.measure import measure
from lightning_practices.surgery._fuse.refusals import is_ours, public_name, why_not, why_not_block
from lightning_practices.surgery._fuse.report import Folded, Replaced, Report, Skipped
from lightning_practices.surgery._fuse.twins import Classes, left_alone, twin_of, twins

# Words in the name of a class, in lower case, that tell a norm or a dropout without a fused class.
_NAMED_FOR = ("norm", "drop")

Modules = Mapping[nn.Module, tuple[str, ...]]  # each module of a model, and all its names


class _Swap(NamedTuple):
    """The class of a module (without its parametrizations), and the fused class that it gets."""

    original: type
    fused: type


def fuse(model: nn.Module, batch: Any = None) -> Report:
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
    fused are not listed, so a second call changes nothing, unless it measures. After an error the
    model is unchanged.

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

    **Transformers.** The addition to the residual stream, with a dropout directly before it, and
    the norm after it are one call, :func:`lightning_kernels.add_dropout_layer_norm` or
    :func:`~lightning_kernels.add_dropout_rms_norm`. This applies to torch's encoder and decoder
    layers, to the blocks of torchvision's vision transformer, to the blocks of timm whose branches
    begin with a norm (ViT, DeiT, EVA, BEiT, Swin, CaiT, XCiT, MLP-Mixer and others), and to the
    blocks of transformers whose source code is known: those of BERT, DistilBERT, ALBERT, BART,
    Whisper, wav2vec 2.0, GPT-2, OPT, Llama, Qwen, Mixtral, Gemma, ViT, DINOv2, CLIP, Swin, SAM, and
    all that are written like them. There, stochastic depth and layer scale are part of the call
    too. The norm has to belong to the same block, or to begin the next block of one
    :class:`torch.nn.Sequential`. The report lists torch's layers as replaced layers, see
    :class:`lightning_practices.nn.TransformerEncoderLayer`, and the norms of all others as folded.

    **Measured.** No kernel is faster than torch for every shape on every GPU. With a ``batch``,
    :func:`fuse` runs the model on it, times each call of a layer both ways, forward and backward,
    on the device of the batch, and keeps a fused layer only if it is at least 3 % faster, beyond
    the noise. It also compares results and gradients on the layer's input, and keeps no layer for
    which they don't agree. If the whole step does not take less time then, all layers are restored.
    A model under ``torch.compile`` is timed compiled, as a whole: there the choice is between all
    of the kernels and Inductor. The report has all times. Parameters, gradients, buffers and
    torch's random generators are as before. It takes about twenty steps of the model, and a tenth
    of a second or more for each different call of a layer; on a CPU, where the kernels don't run,
    few layers gain anything.

    Times on a GPU are kept in a file in the user's cache folder (on Linux
    ``~/.cache/lightning-practices``), for this GPU and these versions of torch, Triton and this
    package. In several processes call :func:`fuse` in all of them: rank 0 measures layers, and all
    ranks choose alike. ``SyncBatchNorm`` and whole steps are not measured there. With
    ``torch.use_deterministic_algorithms`` only kept times are used. Without a batch and without
    kept times, see :func:`lightning_kernels.set_kernel_policy`. A layer that was restored stays
    so: later calls without a batch leave it alone.

    Args:
        model: The model to change.
        batch: What the model is called with in training: a tensor, a tuple of positional arguments,
            or a mapping of keyword arguments. ``None``: nothing is measured.

    Returns:
        A report of the replaced layers, the folded norms, the skipped layers with reasons, the
        norms and dropouts that no fused class serves, and the times.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If the model does not run on the batch.

    Example:
        >>> import torchvision
        >>> from lightning_practices import nn as fused
        >>> from lightning_practices.surgery import fuse
        >>> model = torchvision.models.resnet18()
        >>> fuse(model)
        Report(20 replaced, 17 folded, 0 skipped)
        >>> isinstance(model.bn1, fused.BatchNorm2d)
        True
    """
    report = Report()
    modules = dict(modules_with_names(model))
    before = snapshot(modules)
    if batch is not None:
        _forget_measurements(modules)
    table = twins(map(type, modules))
    plan = _plan_layers(modules, table, report)
    plan |= _plan_blocks(modules, table, plan, report)
    report.not_served += _not_served(modules, table, plan, report)
    report.sort(modules.values())
    for module, swap in plan.items():
        give(module, *swap)
    if batch is not None:
        try:
            measure(model, batch, report)
        except BaseException:
            bring_back(before)
            raise
    return report


def _plan_layers(modules: Modules, table: Classes, report: Report) -> dict[nn.Module, _Swap]:
    """Return the layers to replace, and list them and the skipped layers in ``report``."""
    plan: dict[nn.Module, _Swap] = {}
    other = left_alone()
    for module, names in modules.items():
        original, kind = type_before_parametrizations(module), _kind(module, table)
        if left := vars(module).get(LEFT):
            report.skipped.append(Skipped(names, public_name(original), left))
            continue
        if reason := next((why for cls, why in other.items() if isinstance(module, cls)), None):
            report.skipped.append(Skipped(names, public_name(original), reason))
        if kind is None or issubclass(table[kind], FusedBlock) or _is_fused(module, table):
            continue
        if reason := why_not(module, original, kind, table[kind], ("forward", *DECIDING)):
            report.skipped.append(Skipped(names, public_name(original), reason))
        else:
            plan[module] = _Swap(original, with_base(module, twin_of(original, kind)))
            report.replaced.append(Replaced(names, public_name(original), public_name(table[kind])))
    return plan


def _plan_blocks(
    modules: Modules, table: Classes, layers: Mapping[nn.Module, _Swap], report: Report
) -> dict[nn.Module, _Swap]:
    """Return the blocks to change, and list folded and skipped norms and blocks in ``report``."""
    plan: dict[nn.Module, _Swap] = {}
    classes = {layer: swap.fused for layer, swap in layers.items()}
    for module, names in sorted(modules.items(), key=_folds_after):
        kind = _kind(module, table)
        if (
            LEFT in vars(module)
            or _is_fused(module, table)
            or (kind and not issubclass(table[kind], FusedBlock))
        ):
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
        if refusal := why_not_block(module, original, kind, twin):
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
            report.replaced.append(Replaced(names, public_name(original), _shown(twin)))
        if folded or is_layer:
            plan[module] = _Swap(original, with_base(module, twin_of(original, kind)))
            classes[module] = plan[module].fused
    return plan


def _folds_after(item: tuple[nn.Module, tuple[str, ...]]) -> tuple[bool, bool]:
    """Return a key that sorts a module behind those whose norms it folds.

    A block folds norms that are its children, and a Sequential norms of the blocks that it calls.
    """
    return any(item[0].children()), isinstance(item[0], nn.Sequential)


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
        if not (_is_fused(module, table) or is_ours(cls) or module in parametrizations):
            yield Skipped(names, public_name(cls), "no fused class is known for it")


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
    return Skipped(names, public_name(cls), f"not folded: {reason}")


def _folded(
    module: nn.Module, names: tuple[str, ...], block: type, folds: Mapping[str, str]
) -> Iterator[Folded]:
    """Yield a report entry for each of the ``folds`` of a block with the given names and class."""
    for own, chain in folds.items():
        full = tuple(".".join(filter(None, (name, own))) for name in names)
        norm = module.get_submodule(own)
        before = norm.__dict__.get(FUSED_FROM, type_before_parametrizations(norm))
        yield Folded(full, public_name(before), public_name(block), chain)


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

    Example:
        >>> from lightning_practices.surgery import fuse, unfuse
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        >>> fuse(model)
        Report(1 replaced, 0 folded, 0 skipped)
        >>> unfuse(model)
        Report(1 replaced, 0 folded, 0 skipped)
        >>> type(model[1])
        <class 'torch.nn.modules.normalization.LayerNorm'>
    """
    report = Report()
    modules = dict(modules_with_names(model))
    table = twins(map(type, modules))
    fused: list[nn.Module] = []
    for module, names in modules.items():
        kind = kind_of(module, table)
        if kind is None:
            continue
        if is_changed(module, kind):
            reason = "its class was changed after it was fused"
            report.skipped.append(Skipped(names, public_name(type(module)), reason))
            continue
        fused.append(module)
        original = module.__dict__[FUSED_FROM]
        folded = folds_of(type(module), module, {})[0] if isinstance(module, FusedBlock) else None
        report.folded += _folded(module, names, original, folded or {})
        if _is_listed(module, folded):
            report.replaced.append(Replaced(names, _shown(table[kind]), public_name(original)))
    report.sort(modules.values())
    for module in fused:
        restore(module)
    _forget_measurements(modules)
    return report


def _forget_measurements(modules: Modules) -> None:
    for module in modules:
        vars(module).pop(LEFT, None)


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


def _shown(twin: type[nn.Module]) -> str:
    """Return the name of a fused class, or of the forward that was registered for a block."""
    forward: Any = twin.forward
    if issubclass(twin, FusedBlock) and not twin.sources:
        return f"{forward.__module__}.{forward.__qualname__}"
    return public_name(twin)
