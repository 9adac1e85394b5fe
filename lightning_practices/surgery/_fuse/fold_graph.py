"""Find in a block's graph what can follow a batch norm in one call, and put that call there."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn import functional
from torch.nn.modules import activation as activations
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_practices.nn._batch_norm import FusedBatchNorm
from lightning_practices.surgery._fuse.fold_read import IN_PLACE

Modules = Mapping[str, nn.Module]  # of a block, by name

# Each kernel activation's layer, that layer's parameter if it has one, and its other spellings.
_LAYERS: dict[type[nn.Module], tuple[str, str | None]] = {
    nn.ReLU: ("relu", None),
    nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.ELU: ("elu", "alpha"),
    nn.SELU: ("selu", None),
    nn.SiLU: ("silu", None),
    nn.GELU: ("gelu", None),
}
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((functional.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
    **dict.fromkeys((functional.leaky_relu, functional.leaky_relu_), nn.LeakyReLU),
    **dict.fromkeys((functional.elu, functional.elu_), nn.ELU),
    **dict.fromkeys((functional.selu, torch.selu, torch.selu_, functional.selu_), nn.SELU),
    functional.silu: nn.SiLU,
    functional.gelu: nn.GELU,
}
_ADDITIONS: tuple[Any, ...] = (operator.add, torch.add, "add")
_ADDITIONS_IN_PLACE: tuple[Any, ...] = (IN_PLACE["iadd"], "add_")
_CALLS = ("call_module", "call_function", "call_method")
_KEPT_SIGNS = ("relu", "leaky_relu")  # of which the fused call keeps no residual for its gradient


@dataclass(frozen=True)
class Activation:
    """An activation that a batch norm can apply.

    Attributes:
        kind: Its layer.
        parameter: Slope or alpha, if it has one.
    """

    kind: type[nn.Module]
    parameter: float | None

    @property
    def name(self) -> str:
        """What the kernels call it."""
        return _LAYERS[self.kind][0]


@dataclass(frozen=True)
class Fold:
    """One call in place of several.

    Attributes:
        norm: The batch norm's node.
        identities: Nodes of ``nn.Identity`` between the others.
        addition: The node of the addition, if there is one.
        operand: Which argument of the addition is the other summand.
        last: The activation's node.
        activation: Which one it is.
    """

    norm: Node
    identities: tuple[Node, ...]
    addition: Node | None
    operand: int
    last: Node
    activation: Activation

    @property
    def residual(self) -> Any:
        """What is added."""
        return None if self.addition is None else self.addition.args[self.operand]

    @property
    def in_place(self) -> bool:
        """Whether the addition changes its first argument."""
        return self.addition is not None and self.addition.target in _ADDITIONS_IN_PLACE

    @property
    def chain(self) -> str:
        """The addition, if there is one, and the activation, in words."""
        return f"{'add + ' * (self.addition is not None)}{self.activation.kind.__name__}"


def find(norm: Node, modules: Modules) -> Fold | str | None:
    """Return how ``norm`` is folded with what follows, why it can't be, or ``None`` for no need.

    Args:
        norm: The node of a block's graph that calls a batch norm.
        modules: The block's modules by name.
    """
    value, user, identities = _follow(norm, modules)
    if user is None:
        return _used_often("its output", value, modules)
    operand = 0
    addition = user if _is_addition(user) else None
    if addition is not None:
        operands = list(addition.args)
        if operands.count(value) != 1 or not all(isinstance(o, Node) for o in operands):
            return None
        operand = 1 - operands.index(value)
        value, user, more = _follow(addition, modules)
        identities += more
        if user is None:
            return _used_often("the sum", value, modules)
    activation = _activation(user, value, modules)
    if activation is None:
        return None if addition is not None else _behind(user, modules)
    if isinstance(activation, str):
        return activation
    if norm.kwargs or len(norm.args) != 1:
        return "it is called with more than an input"
    fold = Fold(norm, identities, addition, operand, user, activation)
    return _hazard(fold, modules) or fold


def apply(graph: Graph, fold: Fold) -> None:
    """Put the fused call into ``graph``, and take out what it replaces."""
    source, parameter = fold.norm.args[0], fold.activation.parameter
    with graph.inserting_before(fold.addition or fold.norm):
        layer = graph.create_node("get_attr", fold.norm.target)
        arguments = layer, source, fold.residual, fold.activation.name, parameter
        if fold.addition is None:
            fused = graph.call_method("normalise", arguments)
        else:
            fused = graph.call_function(normalise_and_add, (*arguments, fold.in_place))
    fold.last.replace_all_uses_with(fused)
    gone = {fold.last, fold.norm, *fold.identities, fold.addition}
    for node in reversed(graph.nodes):
        if node in gone:
            graph.erase_node(node)


def normalise_and_add(
    norm: FusedBatchNorm,
    input: Tensor,
    residual: Any,
    activation: str,
    parameter: float | None,
    in_place: bool,
) -> Any:
    """Normalise, add and activate: in one call if the residual is like the input, or one by one."""
    if (
        isinstance(residual, Tensor)
        and residual.shape == input.shape
        and residual.dtype == input.dtype
        and residual.device == input.device
    ):
        return norm.normalise(input, residual, activation, parameter)
    total = norm.normalise(input, None, None, None)
    total = total.add_(residual) if in_place else total + residual
    arguments = () if parameter is None else (parameter,)
    return getattr(functional, activation)(total, *arguments)


def relies_on(fold: Fold, modules: Modules) -> dict[str, tuple[tuple[str, Any], ...]]:
    """Return the names of modules that must stay what they are, and with them which attributes."""
    found: dict[str, tuple[tuple[str, Any], ...]] = {str(fold.norm.target): (("activation", None),)}
    for node in (*fold.identities, fold.last):
        if node.op == "call_module":
            layer = modules[str(node.target)]
            names = ("negative_slope", "alpha", "approximate")
            found[str(node.target)] = tuple((n, vars(layer)[n]) for n in names if n in vars(layer))
    if fold.addition is not None and _source(fold, modules):
        found[_source(fold, modules)] = ()
    return found


def _follow(node: Node, modules: Modules) -> tuple[Node, Node | None, tuple[Node, ...]]:
    """Return the last node with ``node``'s value, its only user, and the identities passed."""
    passed: tuple[Node, ...] = ()
    while len(node.users) == 1:
        user = next(iter(node.users))
        if type(_module(user, modules)) is not nn.Identity or user.args != (node,):
            return node, user, passed
        node, passed = user, (*passed, user)
    return node, None, passed


def _module(node: Node, modules: Modules) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _is_addition(node: Node) -> bool:
    known = node.op in _CALLS[1:] and node.target in _ADDITIONS + _ADDITIONS_IN_PLACE
    plain = len(node.args) == 2 and (not node.kwargs or dict(node.kwargs) == {"alpha": 1})
    return known and plain


def _activation(node: Node, value: Node, modules: Modules) -> Activation | str | None:
    """Return which activation of ``value`` the node is, or why it can't be fused if it is one."""
    layer = _module(node, modules)
    options = dict(node.kwargs)
    if layer is not None:
        kind, options = type(layer), vars(layer)
        known = kind in _LAYERS and node.args == (value,) and not node.kwargs
    else:
        kind = _FUNCTIONS.get(node.target, nn.Module)
        known = node.op in _CALLS and node.args[:1] == (value,)
    if not known or kind not in _LAYERS:
        return f"{_name(node, modules)} can't be fused" if _activates(node, modules) else None
    name = _LAYERS[kind][1]
    parameter = options.get(name) if name else None
    if layer is None and len(node.args) > 1 and name:
        parameter = node.args[1]
    if options.get("approximate", "none") != "none":
        return "the approximated GELU can't be fused"
    if not isinstance(parameter, (float, int, type(None))):
        return f"the {name} of {_name(node, modules)} is not a number"
    return Activation(kind, None if parameter is None else float(parameter))


def _activates(node: Node, modules: Modules) -> bool:
    """Return whether the node is an activation of torch's, or a subclass of one."""
    layer = _module(node, modules)
    if layer is not None:
        return any(cls.__module__ == activations.__name__ for cls in type(layer).__mro__)
    name = getattr(node.target, "__name__", node.target)
    names = {name.lower().strip("_") for name in activations.__all__} | {
        "leaky_relu",
        "log_softmax",
    }
    return isinstance(name, str) and name.strip("_") in names


def _used_often(what: str, value: Node, modules: Modules) -> str | None:
    """Return the reason, if one of several users of ``value`` would else have been folded."""
    if any(_is_addition(user) or _activates(user, modules) for user in value.users):
        return f"{what} is used {len(value.users)} times"
    return None


def _behind(node: Node, modules: Modules) -> str | None:
    """Return the reason, if what ``node`` does stands between the norm and what can be folded."""
    first = node
    while node.op in _CALLS and len(node.users) == 1:
        if isinstance(_module(node, modules), (_ConvNd, nn.Linear, _NormBase)):
            return None  # another layer, to which the rest belongs
        node = next(iter(node.users))
        if _is_addition(node) or _activates(node, modules):
            return f"{_name(first, modules)} stands before the {_name(node, modules)}"
    return None


def _name(node: Node, modules: Modules) -> str:
    if _is_addition(node):
        return "addition"
    layer = _module(node, modules)
    target = type(layer) if layer is not None else node.target
    return str(getattr(target, "__name__", target))


def _hazard(fold: Fold, modules: Modules) -> str | None:
    """Return what would be different in one call, or ``None``."""
    graph, addition = fold.norm.graph, fold.addition
    if sum(node.target == fold.norm.target for node in graph.nodes) > 1:
        return "it is called more than once"
    if addition is None:
        return None
    if fold.in_place and fold.operand == 0:
        return "it is added to another tensor in place"
    order = {node: place for place, node in enumerate(graph.nodes)}
    if fold.activation.name not in _KEPT_SIGNS and any(
        order[user] > order[addition] for user in fold.residual.users
    ):  # which may change it in place, and its gradient needs it
        return "the other summand is used again after the addition"
    between = [n for n in graph.nodes if order[fold.norm] < order[n] < order[addition]]
    if set(between) <= set(fold.identities):
        return None
    if not _source(fold, modules):
        return "its input may be changed before the addition, as it is not from a layer just before"
    if any(str(n.target).startswith(f"{fold.norm.target}.") for n in graph.nodes):
        return "its parameters or buffers are used apart"
    return None


def _source(fold: Fold, modules: Modules) -> str:
    """Return the name of the layer that has made the norm's input, which nothing else can reach."""
    source = fold.norm.args[0]
    if isinstance(source, Node) and len(source.users) == 1:
        layer = _module(source, modules)
        if isinstance(layer, (_ConvNd, nn.Linear)) and type(layer).forward.__module__.startswith(
            "torch.nn.modules."
        ):
            return str(source.target)
    return ""
