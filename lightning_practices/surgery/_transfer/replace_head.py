"""Replace the layer that outputs the classes."""

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lightning_practices._arguments import check_flag, check_whole
from lightning_practices.surgery._blocks import AUXILIARY, blocks, is_within
from lightning_practices.surgery._transfer.freeze import freeze

Output = nn.Linear | nn.Conv2d


def replace_head(model: nn.Module, num_classes: int) -> tuple[str, ...]:
    """Replace the layer of ``model`` that outputs the classes by a new layer, in place.

    The layer is the last layer of the head, see :func:`blocks`: an ``nn.Linear``, or an
    ``nn.Conv2d`` with a kernel of 1 x 1. The new layer has the same class, number of inputs, dtype
    and device, a bias if the old layer has one, and torch's default initialisation. For a timm
    model its method ``reset_classifier`` does the work. The auxiliary classifiers of GoogLeNet and
    Inception are replaced too. Call this function before the optimizer is made, and before a
    strategy shards or wraps the model.

    Sources: lectures S0 and S2.

    Args:
        model: The model to change.
        num_classes: Number of outputs of the new layer, at least 1.

    Returns:
        The names of the new layers.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``num_classes`` is not a positive integer. If the last layer of the head is
            of another class, is parametrized or sharded, or shares a parameter with another layer.
            Also as for :func:`blocks`.
    """
    num_classes = check_whole("num_classes", num_classes, 1)
    layers = output_layers(model)
    of_timm = network_of_timm(model, layers)
    if of_timm is None:
        for layer in layers.values():
            swap(model, layer, new_layer(layer, inputs_of(layer), num_classes))
        return tuple(layers)
    before = set(model.modules())
    of_timm.reset_classifier(num_classes)  # a distilled model gets two new layers
    made = [(name, module) for name, module in model.named_modules() if module not in before]
    return tuple(name for name, module in made if any(True for _ in module.parameters(False)))


def feature_extractor(
    model: nn.Module, num_classes: int | None = None, *, dropout: bool = False
) -> tuple[str, ...]:
    """Make ``model`` a fixed feature extractor with a new head, in place.

    :func:`freeze` freezes all blocks but the head, including batch norms, and :func:`replace_head`
    replaces the head. Only the head is trained. :func:`unfreeze` undoes the freezing.

    Sources: "Transfer learning", lectures S0 and S2: all pretrained layers are frozen, a new head
    is trained.

    Args:
        model: The model to change.
        num_classes: Number of outputs of the new head. Default: the head stays unchanged.
        dropout: Whether dropout stays on in the frozen blocks, see :func:`freeze`.

    Returns:
        The names of the trainable parameters.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``model`` is a single block. Also as for :func:`replace_head`.
    """
    if num_classes is not None:
        num_classes = check_whole("num_classes", num_classes, 1)
    check_flag("dropout", dropout)
    found = blocks(model)
    if len(found) == 1:
        raise ValueError(
            f"{type(model).__name__} is one block, {found[0].name!r}, with nothing below the head:"
            " freeze by names, with surgery.freeze"
        )
    if num_classes is not None:
        replace_head(model, num_classes)
    freeze(model, blocks(model)[1:], dropout=dropout)
    return tuple(name for name, p in model.named_parameters() if p.requires_grad)


def output_layers(model: nn.Module) -> dict[str, Output]:
    """Return the layers that output the classes, by name: auxiliary layers first, main layer last.

    Raises:
        ValueError: If a layer can't be replaced.
    """
    head = set(blocks(model)[0].parameters)
    ids = {id(p) for name, p in model.named_parameters() if name in head}
    auxiliary = [name for name, module in model.named_modules() if isinstance(module, AUXILIARY)]
    last: dict[str, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleDict):
            _check_single(name, module, head)
        if any(id(p) in ids for p in module.parameters(recurse=False)):
            last[next((aux for aux in auxiliary if is_within(name, aux)), "")] = name, module
    ordered = sorted(last.items(), key=lambda entry: entry[0] == "")
    return {name: _checked(model, name, module) for _, (name, module) in ordered}


def new_layer(old: Output, in_features: int, out_features: int) -> Output:
    """Return a new layer of the class of ``old``, with the given numbers of inputs and outputs."""
    options: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, nn.Linear):
        return nn.Linear(in_features, out_features, old.bias is not None, **options)
    return nn.Conv2d(in_features, out_features, 1, bias=old.bias is not None, **options)


def inputs_of(layer: Output) -> int:
    """Return the number of input features or input channels of a layer."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def outputs_of(layer: Output) -> int:
    """Return the number of output features or output channels of a layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def swap(model: nn.Module, old: Output, new: Output) -> None:
    """Replace ``old`` by ``new`` in all of ``model``, and update attributes that hold its sizes."""
    new.train(model.training)
    sizes = {
        "num_classes": (outputs_of(old), outputs_of(new)),
        "num_features": (inputs_of(old), inputs_of(new)),
        "head_hidden_size": (inputs_of(old), inputs_of(new)),
    }
    for module in list(model.modules()):
        if all(part is not old for part in module.modules()):
            continue
        for name, (before, after) in sizes.items():
            if vars(module).get(name) == before:
                setattr(module, name, after)
        for name, child in list(module._modules.items()):
            if child is old:
                setattr(module, name, new)


def network_of_timm(model: nn.Module, layers: dict[str, Output]) -> Any:
    """Return the outermost timm model that contains the layers, or ``None``."""
    for module in model.modules():
        # Check the class: `__getattr__` of a compiled module returns the inner module's attributes.
        if hasattr(type(module), "reset_classifier") and hasattr(type(module), "group_matcher"):
            inside = set(module.modules())
            if inside.issuperset(layers.values()):
                return module
    return None


def _check_single(name: str, module: nn.ModuleDict, head: set[str]) -> None:
    """Raise ``ValueError`` if the head has several outputs in parallel."""
    full = f"{name}." if name else ""
    outputs = [
        key
        for key, child in module.items()
        if (own := {f"{full}{key}.{p}" for p, _ in child.named_parameters()}) and own <= head
    ]
    if len(outputs) > 1:
        raise ValueError(
            f"the head has several outputs, {', '.join(map(repr, outputs))} of {name!r}: replace"
            " them by assignment"
        )


def _checked(model: nn.Module, name: str, module: nn.Module) -> Output:
    """Return ``module`` if :func:`new_layer` can replace it; otherwise raise ``ValueError``."""
    where = f"the head ends in {name or type(model).__name__!r}"
    if is_parametrized(module) or isinstance(module, ParametrizationList):
        raise ValueError(f"{where}, which is parametrized: remove the parametrization first")
    is_linear = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    if not isinstance(module, nn.Linear | nn.Conv2d) or not (is_linear or _is_pointwise(module)):
        raise ValueError(
            f"{where}, a {type(module).__name__}, but expected nn.Linear or a 1 x 1 nn.Conv2d:"
            " replace it by assignment"
        )
    for own, p in module.named_parameters(recurse=False):
        if isinstance(p, DTensor):
            raise ValueError(f"{where}, whose {own} is sharded: replace the head before sharding")
        places = [m for m in model.modules() if any(q is p for q in m._parameters.values())]
        if len(places) > 1:
            raise ValueError(
                f"{where}, whose {own} is shared with {type(places[0]).__name__}: a new head"
                " would not share it, so replace the head by assignment"
            )
    if not name:
        raise ValueError(f"the model is itself a {type(model).__name__}: make a new one")
    return module


def _is_pointwise(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and (
        {*module.kernel_size, *module.stride, module.groups} == {1} and module.padding == (0, 0)
    )
