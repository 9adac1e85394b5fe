"""Divide a network into layers, starting at the input."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from torch import nn

from lightning_practices._layers import NORMS
from lightning_practices.nn.blocks import FusedBlock
from lightning_practices.surgery._blocks.heads import doubt, side_by_side
from lightning_practices.surgery._blocks.libraries import (
    Layer,
    Library,
    backbone_of,
    groups_of_timm,
    is_auxiliary,
    is_embedding,
    library_of,
    notes_of,
    units_of,
)
from lightning_practices.surgery._blocks.sizes import children_with_parameters, count, features_out

Unit = tuple[nn.Module, ...]
Uses = Mapping[nn.Module, int]

# Names under which wrappers (torch.compile, FSDP1, checkpointing, DDP) hold their only child.
_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}


@dataclass
class Division:
    """The layers of a network.

    Attributes:
        layers: The parameters of each layer, starting at the input. A parameter that several layers
            share is listed in each of them.
        doubts: Why the order may be wrong.
        notes: What a reader of the table has to know.
    """

    layers: list[Layer]
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def divide(model: nn.Module, uses: Uses | None = None) -> Division:
    """Divide a network into layers. :func:`lightning_practices.surgery.blocks` defines a layer.

    Args:
        model: The network.
        uses: The order in which the modules run, if it is known.
    """
    divider = _Divider(model, uses)
    layers = divider.network(network_in(model), None)
    if uses is not None:
        layers.sort(key=_FirstUse(uses))
    return Division(layers, divider.doubts, list(dict.fromkeys(divider.notes)))


def network_in(model: nn.Module) -> nn.Module:
    """Return the network in wrappers, such as a ``LightningModule`` with a single child."""
    model = _unwrapped(model)
    while library_of(model) is None:
        children = children_with_parameters(model)
        if len(children) != 1 or any(True for _ in model.parameters(recurse=False)):
            break
        model = _unwrapped(children[0])
    return model


def is_scale(module: nn.Module) -> bool:
    """Return whether a module only scales and shifts, such as norms, layer scales and ``PReLU``."""
    parameters = list(module.parameters())
    return isinstance(module, NORMS) or all(p.dim() <= 1 for p in parameters)


def is_list(module: nn.Module) -> bool:
    """Return whether a module's children are known to run one after another."""
    cls = module.original if isinstance(module, FusedBlock) else type(module)
    is_plain = issubclass(cls, nn.Sequential) and cls.forward is nn.Sequential.forward
    return is_plain or isinstance(module, nn.ModuleList)


class _Divider:
    """Divides one model, and notes doubts on the way."""

    def __init__(self, model: nn.Module, uses: Uses | None) -> None:
        self._total = count(model)
        self._end = next(reversed(list(model.parameters())))
        self._uses = uses
        self._embeddings: Layer = []  # of a transformers model: tokens, positions, patches
        self.doubts: list[str] = []
        self.notes: list[str] = []

    def network(self, module: nn.Module, library: Library | None) -> list[Layer]:
        """Return the layers of a module whose children run one after another.

        Args:
            module: The network.
            library: The library whose conventions hold around the module.
        """
        own = library_of(module)
        if own is Library.TIMM:
            return groups_of_timm(module)
        if own is not Library.TRANSFORMERS or library is Library.TRANSFORMERS:
            return self._sequence(module, own or library)
        self.notes += notes_of(module)
        outer, self._embeddings = self._embeddings, []
        layers = self._sequence(module, own)
        if self._embeddings:
            layers = [self._embeddings, *layers]
        self._embeddings = outer
        return layers

    def _sequence(self, module: nn.Module, library: Library | None) -> list[Layer]:
        """Return the layers of the children, one after another, and of the module's parameters."""
        children = self._children(module, library)
        auxiliary = [child for child in children if is_auxiliary(module, child)]
        children = [child for child in children if child not in auxiliary]
        first: Layer = list(module.parameters(recurse=False))
        embedded = self._embedded(module, children) if library is Library.TRANSFORMERS else []
        if embedded:
            first += [p for child in embedded for p in child.parameters()]
            children = [child for child in children if child not in embedded]
            if any(isinstance(part, nn.Embedding) for c in embedded for part in c.modules()):
                self._embeddings += first
                first = []
        units = units_of(module, children, library)
        if library is not Library.TORCHVISION and not is_list(module):
            self._look_for_doubt(module, children, library)
            if heads := side_by_side(module, children):
                units = [unit for unit in units if unit[0] not in heads] + [tuple(heads)]
        listed = is_list(module) and not _are_stages(children)
        layers = _joined(
            (unit, self._layers(unit[0], library, listed=listed))
            if len(unit) == 1
            else (unit, [[p for part in unit for p in part.parameters()]])
            for unit in units
        )
        if first and layers and not embedded:
            layers[0] = first + layers[0]
        elif first:
            layers = [first, *layers]
        if auxiliary:
            layers[-1] = layers[-1] + [p for child in auxiliary for p in child.parameters()]
        return layers

    def _embedded(self, module: nn.Module, children: Sequence[nn.Module]) -> list[nn.Module]:
        names = {child: name for name, child in module.named_children()}
        return [c for c in children if is_embedding(names[c], c, is_scale=is_scale(c))]

    def _layers(self, module: nn.Module, library: Library | None, *, listed: bool) -> list[Layer]:
        """Return the layers of a child.

        Args:
            module: The child.
            library: The library whose conventions hold around the child.
            listed: Whether the child is an element of a list of layers.
        """
        module = _unwrapped(module)
        if is_list(module):
            parts = self._children(module, None)
            listed = not _are_stages(parts)
            return _joined(((part,), self._layers(part, library, listed=listed)) for part in parts)
        if library_of(module) is not None:
            return self.network(module, library)
        if library is not Library.TORCHVISION and (2 * count(module) > self._total or not listed):
            children = children_with_parameters(module)
            is_wrapper = len(children) == 1 and not any(True for _ in module.parameters(False))
            if is_wrapper and is_list(_unwrapped(children[0])):
                return self._layers(children[0], library, listed=True)
            if _has_layers(module):
                return self._sequence(module, library)
        return [list(module.parameters())]

    def _children(self, module: nn.Module, library: Library | None) -> list[nn.Module]:
        """Return the children that have parameters, as far as is known in the order of the data."""
        children = children_with_parameters(module)
        times, parts = len(module._modules), len({*module._modules.values()})
        if is_list(module) and parts < times:
            self.notes.append(
                f"a list of {times} layers holds {parts} of its own: layers that share parameters"
                " are one block"
            )
        if library is Library.TRANSFORMERS and (backbone := backbone_of(module)) in children:
            children.sort(key=lambda child: child is not backbone)
        if self._uses is not None:
            place, places = -1, dict[nn.Module, tuple[int, bool]]()
            for child in children:  # one that doesn't run stays beside the one before it, below it
                used = [self._uses[part] for part in child.modules() if part in self._uses]
                place = min(used, default=place)
                places[child] = place, bool(used)
            children.sort(key=places.__getitem__)
        return children

    def _look_for_doubt(
        self, module: nn.Module, children: Sequence[nn.Module], library: Library | None
    ) -> None:
        is_end = any(p is self._end for child in children for p in child.parameters())
        if self._uses is None and library is None and is_end:
            found = doubt(module, [child for child in children if not is_scale(child)])
            self.doubts += [] if found is None else [found]


class _FirstUse:
    """Returns when a layer is used first; one that isn't used stays after the one before it."""

    def __init__(self, uses: Uses) -> None:
        self._uses: dict[int, int] = {}
        for module, place in uses.items():
            for p in module.parameters(recurse=False):
                self._uses[id(p)] = min(place, self._uses.get(id(p), place))
        self._last = -1

    def __call__(self, layer: Layer) -> int:
        places = [self._uses[id(p)] for p in layer if id(p) in self._uses]
        self._last = min(places, default=self._last)
        return self._last


def _joined(parts: Iterable[tuple[Unit, list[Layer]]]) -> list[Layer]:
    """Return the layers of all parts. A part that only scales joins the previous or first layer."""
    layers: list[Layer] = []
    waiting: Layer = []
    for unit, found in parts:
        if not found:
            continue
        if not all(is_scale(module) for module in unit):
            layers += [waiting + found[0], *found[1:]]
            waiting = []
        elif layers:
            layers[-1] += chain.from_iterable(found)
        else:
            waiting += chain.from_iterable(found)
    return [*layers, waiting] if waiting else layers


def _has_layers(module: nn.Module) -> bool:
    """Return whether most parameters of a module, without embeddings, are in lists of layers.

    A list of layers has several elements of the same class. An encoder and a decoder have a list
    each.
    """
    return 2 * sum(count(part) for part in _lists(module)) > count(module)


def _lists(module: nn.Module) -> list[nn.Module]:
    """Return the outermost lists that have several elements of the same class."""
    found: list[nn.Module] = []
    for child in children_with_parameters(module):
        classes = [type(part) for part in children_with_parameters(child)] if is_list(child) else []
        found += [child] if len(set(classes)) < len(classes) else _lists(child)
    return found


def _are_stages(parts: Sequence[nn.Module]) -> bool:
    """Return whether elements of a list are stages: of one class, of several widths, with layers.

    A layer in a stage has several weights of its own.
    """
    if len(parts) < 2 or len({type(part) for part in parts}) > 1:
        return False
    inner = [
        layer
        for part in parts
        for found in _lists(part)
        for layer in children_with_parameters(found)
    ]
    widths = {features_out(part) for part in parts}
    return len(widths) > 1 and bool(inner) and all(map(_is_composite, inner))


def _is_composite(layer: nn.Module) -> bool:
    return sum(p.dim() > 1 for p in layer.parameters()) > 1


def _unwrapped(module: nn.Module) -> nn.Module:
    while (names := dict(module.named_children()).keys()) and len(names) == 1 and names <= _WRAPPED:
        module = next(module.children())
    return module
