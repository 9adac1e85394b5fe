"""The graph of a loss's gradient: its functions, in the order of the forward pass.

Its nodes hold tensors of the forward pass for the backward pass. Reading them needs no hook on
modules, and also sees functions that are called without one. Nodes of compiled code, of custom
functions and of checkpointed activations are passed over.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from lightning_practices.callbacks._training_advisor.weights import dims

_PARTS = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Functions between a parameter and the layer that uses it.
_VIEWS = {"t", "transpose", "view", "reshape_alias", "unsafe_view", "to_copy", "permute", "expand",
          "unsqueeze", "alias", "clone", "select", "slice", "split", "unbind",
          "as_strided"}  # fmt: skip
_PASSED = _VIEWS | {"native_dropout", "native_batch_norm", "cudnn_batch_norm", "native_layer_norm",
                    "max_pool2d_with_indices", "avg_pool2d", "mean", "cat", "squeeze",
                    "mul"}  # fmt: skip
# Functions of parameters alone, in penalties and learned scales.
_OF_PARAMETERS = _VIEWS | {"add", "sub", "mul", "div", "pow", "abs", "sum", "mean", "stack", "cat",
                           "linalg_vector_norm", "norm", "neg", "sqrt", "exp", "log",
                           "squeeze"}  # fmt: skip


class Layer(NamedTuple):
    """A parameter that a function uses: its name, and its place among those of the graph."""

    name: str
    place: int

    @property
    def module(self) -> str:
        """The name of the module that holds it."""
        return self.name.rpartition(".")[0]


@dataclass(eq=False)
class Node:
    """A function of the graph.

    Attributes:
        raw: Torch's node.
        kind: Name of the function, such as ``"log_softmax"``.
        inputs: The nodes before it, without those of parameters.
        parameters: Names of the parameters that it uses.
        layer: The last parameter on the way to it; ``None`` before the first.
        users: The nodes after it.
        end: The place of the last weight that multiplies, here or after it; -1 if there is none.
    """

    raw: Any
    kind: str
    inputs: list["Node"] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    layer: Layer | None = None
    users: list["Node"] = field(default_factory=list)
    end: int = -1

    def saved(self, name: str) -> Tensor | None:
        """Return a tensor that the node holds; ``None`` if there is none, or a hook holds it."""
        try:
            raw = getattr(self.raw, f"_raw_saved_{name}")
            if getattr(raw, "unpack_hook", None) is not None:
                return None  # a checkpoint would run the forward pass again
            value = getattr(self.raw, f"_saved_{name}")
        except (AttributeError, RuntimeError):  # changed in place since, or freed
            return None
        return value if isinstance(value, Tensor) else None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the floating point tensors that the node holds, by name, the inputs first."""
        names = [name[7:] for name in dir(self.raw) if name.startswith("_saved_")]
        for name in sorted(names, key=lambda name: name.startswith("result")):
            x = self.saved(name)
            if x is not None and x.is_floating_point():
                yield name, x


class Graph:
    """The graph of a loss.

    Args:
        loss: The loss.
        names: The names of the parameters by ``id``.
    """

    def __init__(self, loss: Tensor, names: Mapping[int, str]) -> None:
        self._names = names
        self.nodes: list[Node] = []
        self.places: dict[str, int] = {}  # of the parameters, in the order of the forward pass
        self.tables: set[str] = set()  # parameters whose rows are looked up
        self.ends: dict[str, int] = {}  # the place of the last weight after each, on its branch
        self._weights: set[str] = set()  # parameters of several dimensions
        self._read(loss)
        self._note_ends()

    @cached_property
    def activations(self) -> list[Node]:
        """The nodes of ReLU, tanh and sigmoid."""
        return [node for node in self.nodes if node.kind in ("relu", "tanh", "sigmoid")]

    def feeds(self, node: Node) -> Layer | None:
        """Return the layer that gets the result of ``node``, unless that is a gate or an output."""
        waiting, seen = list(node.users), set()
        while waiting:
            user = waiting.pop(0)
            if id(user) in seen:
                continue
            seen.add(id(user))
            if user.kind == "mul" and len(user.inputs) > 1:
                return None
            if user.parameters and user.kind not in _PASSED:
                return user.layer
            if user.kind in _PASSED:
                waiting += user.users
        return None

    def has_other_terms(self, losses: Collection[Node]) -> bool:
        """Say whether more than ``losses``, which are nodes of the graph, makes up the loss.

        Weights of single samples count. Constant factors, learned scales, and penalties of the
        parameters alone don't.
        """
        known = {id(node) for node in losses}
        waiting = [self.nodes[-1]] if self.nodes else []
        while waiting:
            node = waiting.pop()
            if id(node) in known:
                continue
            known.add(id(node))
            if node.parameters and node.kind not in _OF_PARAMETERS:
                return True
            if node.kind in ("mul", "div") and len(node.inputs) + len(node.parameters) == 1:
                factors = [node.saved("self"), node.saved("other")]
                if any(x is not None and x.numel() > 1 for x in factors):
                    return True
            waiting += node.inputs
        return not losses

    def _note_ends(self) -> None:
        for node in reversed(self.nodes):
            own = [self.places[name] for name in node.parameters if name in self._weights]
            node.end = max(own + [user.end for user in node.users], default=-1)
            for name in node.parameters:
                self.ends[name] = max(node.end, self.ends.get(name, -1))

    def _read(self, loss: Tensor) -> None:
        found: dict[Any, Node] = {}
        of_parameter: dict[Any, str] = {}  # views and casts of parameters alone
        for raw in sorted(_reached(loss), key=_place):
            variable = getattr(raw, "variable", None)
            if variable is not None:
                if (name := self._names.get(id(variable))) is not None:
                    of_parameter[raw] = name
                    if dims(variable) > 1:
                        self._weights.add(name)
                continue
            before = [one for one, _ in raw.next_functions if one is not None]
            names = [of_parameter[one] for one in before if one in of_parameter]
            inputs = [found[one] for one in before if one in found]
            kind = _kind(raw.name())
            if names and len(before) == 1 and kind in _VIEWS:
                of_parameter[raw] = names[0]
                continue
            found[raw] = self._add(Node(raw, kind, inputs, names))

    def _add(self, node: Node) -> Node:
        for one in node.inputs:
            one.users.append(node)
        for name in node.parameters:
            self.places.setdefault(name, len(self.places))
            if node.kind.startswith("embedding"):
                self.tables.add(name)
        layers = [one.layer for one in node.inputs if one.layer is not None]
        if node.parameters:
            # The weight rather than the bias, which comes first in the graph.
            name = min(node.parameters, key=lambda name: name.endswith("bias"))
            layers = [Layer(name, self.places[name])]
        node.layer = max(layers, key=lambda layer: layer.place, default=None)
        self.nodes.append(node)
        return node


def _reached(loss: Tensor) -> set[Any]:
    """Return the nodes that a backward pass from ``loss`` reaches."""
    waiting = [] if loss.grad_fn is None else [loss.grad_fn]
    seen: set[Any] = set(waiting)
    while waiting:
        for one, _ in waiting.pop().next_functions:
            if one is not None and one not in seen:
                seen.add(one)
                waiting.append(one)
    return seen


def _place(raw: Any) -> int:
    """Return a key that puts parameters first, then nodes in the order of the forward pass."""
    return -1 if hasattr(raw, "variable") else int(raw._sequence_nr())


def _kind(name: str) -> str:
    """Return the function's name: ``"log_softmax"`` of ``LogSoftmaxBackward0``."""
    plain = name.rpartition("::")[2].partition("Backward")[0]
    return _PARTS.sub("_", plain).lower()
