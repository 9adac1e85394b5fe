"""Record the functions that a model calls on a batch, as a graph."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from lightning_practices._names import plain_name
from lightning_practices.init._activations import Activation, of_function
from lightning_practices.init._run import call, unchanged

Kind = Literal[
    "input", "parameter", "layer", "norm", "activation", "add", "attention", "end", "pass"
]

LAYERS = frozenset(
    {"linear", "bilinear", "addmm", "embedding", "embedding_bag"}
    | {f"conv{transpose}{n}d" for transpose in ("", "_transpose") for n in (1, 2, 3)}
)
_PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "mm", "einsum"})
_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
_ADDS = frozenset({"add", "__add__", "__radd__", "__iadd__"})
_ENDS = frozenset(
    {"softmax", "log_softmax", "cross_entropy", "nll_loss", "mse_loss", "argmax"}
    | {name + cell for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")}
)
_ATTENTION = "multi_head_attention_forward"
_PACKED = inspect.signature(functional.multi_head_attention_forward)


@dataclass(frozen=True)
class Node:
    """A call of a function.

    Attributes:
        op: Name of the function.
        kind: What the function is.
        inputs: Places of the calls that made its arguments.
        weights: Names of the parameters from which its weights are computed.
        activation: The activation, for the kind ``"activation"``.
        is_data: Whether the result depends on the model's input.
        shape: Shape of the result.
    """

    op: str
    kind: Kind
    inputs: tuple[int, ...] = ()
    weights: tuple[str, ...] = ()
    activation: Activation | None = None
    is_data: bool = True
    shape: tuple[int, ...] = ()


class Recorder(TorchFunctionMode):
    """Records the calls of functions on tensors. Within torch's own functions it is off.

    Args:
        model: The model.
        seen: Function that is called with the place of a new node and its result.
    """

    def __init__(self, model: nn.Module, seen: Callable[[int, Tensor], None] | None = None) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.outputs: tuple[int, ...] = ()
        self._places: Any = WeakTensorKeyDictionary()
        self._seen = seen
        for name, p in weight_names(model).items():
            self._add(p, Node("parameter", "parameter", weights=(name,), is_data=False))

    def feed(self, batch: Any) -> None:
        """Mark the tensors of a batch as the model's input."""
        for x in _tensors(batch):
            self._add(x, Node("input", "input", shape=tuple(x.shape)))

    def end(self, output: Any) -> None:
        """Mark the tensors of the model's output."""
        self.outputs = tuple(self._places[x] for x in _tensors(output) if x in self._places)

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__setitem__":
            self._note(name, args, kwargs, args[0])
        elif name == _ATTENTION:
            self._note_attention(args, kwargs, result)
        else:
            made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            for x in made[: 1 if name in LAYERS | _NORMS else None]:
                self._note(name, args, kwargs, x)
        return result

    def _note(self, name: str, args: Any, kwargs: dict[str, Any], result: Tensor) -> None:
        places = [self._places[x] for x in _tensors((args, kwargs)) if x in self._places]
        if not places:
            return
        data = tuple(place for place in places if self.nodes[place].is_data)
        weights = tuple(
            name for place in places for name in self.nodes[place].weights if place not in data
        )
        plain = name if name.startswith("__") else name.rstrip("_")
        if not data and plain not in LAYERS:  # a weight that is computed from parameters
            node = Node(plain, "parameter", weights=weights, is_data=False)
        else:
            kind, activation = _kind(plain, args, kwargs, bool(weights), len(data))
            shape = tuple(result.shape)
            node = Node(plain, kind, data, weights, activation, True, shape)
        self._add(result, node)

    def _note_attention(self, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        given = _PACKED.bind(*args, **kwargs).arguments
        inputs = [given[name] for name in ("query", "key", "value")]
        packed = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        data = tuple(self._places[x] for x in inputs if x in self._places)
        shape = tuple(result[0].shape)
        weights = self._weights_of(given.get(name) for name in packed)
        self.nodes.append(Node("linear", "layer", data, weights, shape=shape))
        self.nodes.append(Node(_ATTENTION, "attention", (len(self.nodes) - 1,), shape=shape))
        weights = self._weights_of([given["out_proj_weight"]])
        last = (len(self.nodes) - 1,)
        self._add(result[0], Node("linear", "layer", last, weights, shape=shape))

    def _weights_of(self, tensors: Iterable[Any]) -> tuple[str, ...]:
        known = [x for x in tensors if isinstance(x, Tensor) and x in self._places]
        return tuple(name for x in known for name in self.nodes[self._places[x]].weights)

    def _add(self, x: Tensor, node: Node) -> None:
        self._places[x] = len(self.nodes)
        self.nodes.append(node)
        if self._seen is not None and node.kind in ("layer", "activation"):
            self._seen(len(self.nodes) - 1, x)


def record(
    model: nn.Module, batch: Any, seen: Callable[[int, Tensor], None] | None = None
) -> Recorder:
    """Call a model with a batch, and return the recorded calls and the output's places."""
    recorder = Recorder(model, seen)
    recorder.feed(batch)
    with recorder:
        output = call(model, batch)
    recorder.end(output)
    return recorder


def traced(model: nn.Module, batch: Any) -> Recorder:
    """Record the calls in eval mode and without gradients; the model is as before afterwards."""
    with unchanged(model), torch.no_grad():
        return record(model, batch)


def weight_names(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by the names of the weights that they make, the first for tied ones.

    The original of a parametrised weight has the weight's name: ``"0.weight"`` for
    ``"0.parametrizations.weight.original0"``.
    """
    found: dict[str, Tensor] = {}
    known: set[int] = set()
    for path, module in model.named_modules():
        for own, p in module._parameters.items():
            if p is None or id(p) in known:
                continue
            known.add(id(p))
            name = plain_name(f"{path}.{own}" if path else own)
            if isinstance(module, ParametrizationList):
                layer, _, word = path.rpartition("parametrizations.")
                name = plain_name(f"{layer}{word}")
                # Weight norm has two originals; either leads to the name.
                found[name if name not in found else f"{name}.{own}"] = p
            else:
                found[name] = p
    return found


def _kind(
    name: str, args: Any, kwargs: dict[str, Any], has_weights: bool, data: int
) -> tuple[Kind, Activation | None]:
    if has_weights and (name in LAYERS or (name in _PRODUCTS and data == 1)):
        return "layer", None
    if name in _NORMS:
        return "norm", None
    if name in _ADDS and data == 2:
        return "add", None
    if name == "scaled_dot_product_attention":
        return "attention", None
    if name in _ENDS | LAYERS | _PRODUCTS:
        return "end", None
    activation = _activation(name, args, kwargs)
    return ("pass", None) if activation is None else ("activation", activation)


def _activation(name: str, args: Any, kwargs: dict[str, Any]) -> Activation | None:
    def given(place: int, key: str, default: Any) -> Any:
        return kwargs.get(key, args[place] if len(args) > place else default)

    if name == "hardtanh":
        is_signed = given(1, "min_val", -1.0) < 0
        return Activation("hardtanh" if is_signed else "relu6")
    if name in ("clamp", "clamp_min", "clip"):
        return Activation("relu") if given(1, "min", None) == 0 else None
    if name == "leaky_relu":
        return of_function(name, float(given(1, "negative_slope", 0.01)))
    if name in ("elu", "celu"):
        return of_function(name, float(given(1, "alpha", 1.0)))
    if name == "erf":
        return Activation("erf")
    return of_function(name)


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]
