"""Find the layers of a head that output the classes."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lightning_practices.surgery._blocks import (
    Library,
    auxiliary_in,
    blocks,
    children_with_parameters,
    is_within,
    leaves,
    library_of,
    may_feed,
    side_by_side,
)
from lightning_practices.surgery._transfer.detectors import Predictor, predictors_of
from lightning_practices.surgery._transfer.output_layers import Output, class_of, outputs_of

Named = tuple[str, nn.Module]


def head_of(model: nn.Module, example: Any = None) -> set[int]:
    """Return the ids of the parameters of the head, see :func:`blocks`."""
    names = set(blocks(model, example=example)[0].parameters)
    return {id(p) for name, p in model.named_parameters() if name in names}


def network_of(library: Library, model: nn.Module, head: set[int]) -> Any:
    """Return the outermost network of a library that contains the head, or ``None``."""
    for module in model.modules():
        if library_of(module) is library and head <= {id(p) for p in module.parameters()}:
            return module
    return None


def output_layers(model: nn.Module, head: set[int]) -> list[Predictor]:
    """Return the layers that output the classes: auxiliary layers first, the main layer last.

    Raises:
        ValueError: If a layer can't be replaced, or not all layers output the classes.
    """
    owners = [(name, m) for name, m in model.named_modules() if _owns(m, head)]
    found = [each for each in predictors_of(model) if each.name in dict(owners)]
    if not found:
        _check_dicts(model, head)
        names = _of_timm(model, head) or list(_final(model, head, owners))
        found = [Predictor(name, outputs_of(_checked(model, name))) for name in names]
    for each in found:
        _checked(model, each.name)
    return found


def classifiers_of_timm(network: Any) -> list[nn.Module]:
    """Return the modules that a timm model names its classifier, without ``nn.Identity``."""
    given = network.get_classifier()
    several = given if isinstance(given, list | tuple | nn.ModuleList) else [given]
    return [each for each in several if each is not None and any(True for _ in each.parameters())]


def check_own(model: nn.Module, name: str, module: nn.Module) -> None:
    """Raise ``ValueError`` if parameters of a layer are parametrized, sharded or shared."""
    where = f"the head ends in {name or type(model).__name__!r}"
    if is_parametrized(module) or isinstance(module, ParametrizationList):
        raise ValueError(f"{where}, which is parametrized: remove the parametrization first")
    for own, p in module.named_parameters(recurse=False):
        if isinstance(p, DTensor):
            raise ValueError(f"{where}, whose {own} is sharded: replace the head before sharding")
        places = [m for m in model.modules() if any(q is p for q in m._parameters.values())]
        if len(places) > 1:
            raise ValueError(
                f"{where}, whose {own} is shared with {type(places[0]).__name__}: a new head"
                " would not share it, so replace the head by assignment"
            )


def _owns(module: nn.Module, head: set[int]) -> bool:
    return any(id(p) in head for p in module.parameters(recurse=False))


def _of_timm(model: nn.Module, head: set[int]) -> list[str]:
    """Return the names of the last layers of a timm model's classifiers."""
    network = network_of(Library.TIMM, model, head)
    if network is None:
        return []
    names = {module: name for name, module in model.named_modules()}
    return [names[[*leaves(each)][-1]] for each in classifiers_of_timm(network)]


def _final(model: nn.Module, head: set[int], owners: Sequence[Named]) -> Iterator[str]:
    """Yield the last layer of each auxiliary classifier, then the output layers of the rest."""
    auxiliary = auxiliary_in(model)
    main = [named for named in owners if not any(is_within(named[0], aux) for aux in auxiliary)]
    for aux in auxiliary:
        yield from [name for name, _ in owners if is_within(name, aux)][-1:]
    of_torchvision = any(
        library_of(module) is Library.TORCHVISION and head & {id(p) for p in module.parameters()}
        for module in model.modules()
    )
    yield from [main[-1][0]] if of_torchvision else _outputs(model, head, main)


def _outputs(model: nn.Module, head: set[int], layers: Sequence[Named]) -> list[str]:
    """Return the names of the layers that feed no later layer of the head.

    Raises:
        ValueError: If there are several, unless all output the labels of a transformers model.
    """
    last = layers[-1]
    final: list[tuple[str, int]] = []
    for part in _side_by_side(model, head, layers):
        for index, (name, layer) in enumerate(part):
            is_fed = any(may_feed(layer, later) for _, later in part[index + 1 :])
            if class_of(layer) is not None and not is_fed:
                final.append((name, outputs_of(layer)))  # type: ignore[arg-type]
    network = network_of(Library.TRANSFORMERS, model, head)
    labels = None if network is None else network.config.num_labels
    named = [name for name, outputs in final if outputs == labels]
    if len(named) == 1 and named[0].rpartition(".")[2] == "classifier":  # wherever it is registered
        return named
    if len(final) < 2 or final[-1][0] != last[0]:
        return [last[0]]
    if len(named) == len(final):
        return named
    listed = " and ".join(f"{name!r} with {outputs}" for name, outputs in final)
    raise ValueError(f"the head has several outputs, {listed}: replace them by assignment")


def _side_by_side(
    model: nn.Module, head: set[int], layers: Sequence[Named]
) -> list[Sequence[Named]]:
    """Return the layers of each head, where several run side by side; otherwise all in one."""
    for module in reversed(list(model.modules())):  # the innermost module with all layers
        if head <= {id(p) for p in module.parameters()}:
            heads = side_by_side(module, children_with_parameters(module))
            parts = [[named for named in layers if named[1] in set(h.modules())] for h in heads]
            return [part for part in parts if part] or [layers]
    return [layers]


def _check_dicts(model: nn.Module, head: set[int]) -> None:
    """Raise ``ValueError`` if a dict in the head holds several outputs."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleDict):
            continue
        inside = {key: {id(p) for p in child.parameters()} for key, child in module.items()}
        outputs = [key for key, own in inside.items() if own and own <= head]
        if len(outputs) > 1:
            raise ValueError(
                f"the head has several outputs, {', '.join(map(repr, outputs))} of {name!r}:"
                " replace them by assignment"
            )


def _checked(model: nn.Module, name: str) -> Output:
    """Return a layer if it can be replaced; otherwise raise ``ValueError``."""
    layer = model.get_submodule(name)
    check_own(model, name, layer)
    where = f"the head ends in {name or type(model).__name__!r}"
    if class_of(layer) is None:
        raise ValueError(
            f"{where}, a {type(layer).__name__}, but expected nn.Linear, nn.Conv1d, nn.Conv2d,"
            " nn.Conv3d or a transposed one of these, with torch's forward: replace it by"
            " assignment"
        )
    if not name:
        raise ValueError(f"the model is itself a {type(model).__name__}: make a new one")
    parents = [model.get_submodule(name[:i]) for i, char in enumerate(name) if char == "."]
    for parent in parents:
        if type(parent).__module__.startswith("monai.") and hasattr(parent, "residual"):
            raise ValueError(
                f"{where} of a {type(parent).__name__}, which adds its input to its output: make"
                " the model anew with out_channels=..., and load all other weights"
            )
    return layer  # type: ignore[return-value]
