"""Read from a model's structure what follows its weights, where no batch shows it."""

import re
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_practices._layers import NORMS
from lightning_practices.init._activations import (
    LINEAR,
    Activation,
    of_attribute,
    of_function,
    of_module,
)

_ATTRIBUTES = ("activation", "act", "act_fn", "activation_fn", "act_layer", "nonlinearity")
_QUERIES = re.compile(r"^(q|query|q_proj|q_lin|to_q|wq|query_proj|qkv|qkv_proj|to_qkv|Wqkv|"
                      r"query_key_value|c_attn|in_proj|attn_qkv)$")  # fmt: skip
_PROJECTIONS = re.compile(
    r"(^|\.)(out_proj|o_proj|c_proj|proj|fc2|linear2|down_proj|lin2|out_lin|to_out(\.0)?|wo|w2|"
    r"output\.dense|dense_4h_to_h)$"
)
_SHORTCUTS = ("downsample", "shortcut", "skip")


class Read(NamedTuple):
    """What the structure tells of a layer.

    Attributes:
        activation: The activation after it; ``None`` if there is no sign of one.
        why: How it was read.
    """

    activation: Activation | None
    why: str


def has_weights(module: nn.Module) -> bool:
    """Return whether a module is a layer with a matrix of weights."""
    return isinstance(
        module, nn.Linear | nn.Bilinear | _ConvNd | nn.MultiheadAttention | nn.RNNBase
        | nn.RNNCellBase | nn.Embedding | nn.EmbeddingBag
    ) or is_conv1d(module)  # fmt: skip


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' ``Conv1D``: a linear layer, weight transposed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


class Structure:
    """Answers the questions that a :class:`~lightning_practices.init._flow.Flow` answers.

    Attributes:
        attends: Whether the model has attention layers.
        projections: Names of the weights that write to the residual stream of a transformer.
        last_norms: Names of the scales of norms that stand last in a residual block.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parents: dict[nn.Module, nn.Module] = {}
        for module in model.modules():
            for child in module.children():
                self._parents.setdefault(child, module)
        self._model = model
        names = dict(model.named_modules())
        self.attends = any(_is_attention(module) for module in names.values())
        self.projections = {
            f"{name}.weight"
            for name, module in names.items()
            if self.attends and has_weights(module) and self._is_projection(name, module)
        }
        self.last_norms = {
            f"{name}.{norm}.weight".removeprefix(".")
            for name, module in names.items()
            if (norm := _last_norm(module))
        }

    def following(self, layer: nn.Module) -> Read:
        """Return the activation after a layer."""
        child, is_certain = layer, True
        while (parent := self._parents.get(child)) is not None:
            siblings = list(parent.children())
            later = siblings[siblings.index(child) + 1 :]
            found = next((each for one in later if (each := _first_of(one)) is not None), None)
            if isinstance(parent, nn.Sequential):
                if found is not None:
                    return Read(found, _how(is_certain))
            else:
                is_certain = False
                if found is not None and found != LINEAR:
                    return Read(found, _how(False))
                own = _activations_of(parent)
                is_inside = child is layer and found is not None
                if len(own) == 1 and (is_inside or isinstance(layer, _ConvNd)):
                    return Read(*own, f"guessed, in {type(parent).__name__}")
                if is_inside:
                    return _UNKNOWN
                if found is not None:
                    return Read(LINEAR, _how(False))
            child = parent
        return Read(LINEAR, "guessed, no layer after it")

    def _is_projection(self, name: str, module: nn.Module) -> bool:
        """Say whether a layer's name, or its place in a feed-forward layer, is that of one."""
        if _PROJECTIONS.search(name):
            return True
        parent = self._parents.get(module)
        if not isinstance(parent, nn.Sequential) or not isinstance(module, nn.Linear):
            return False
        own = re.search(r"(mlp|ffn|feed_?forward|ff)(\.\w+)?$", name)
        linears = [each for each in parent.children() if isinstance(each, nn.Linear)]
        return own is not None and len(linears) > 1 and module is linears[-1]


_UNKNOWN = Read(None, "no activation found")


def _how(is_certain: bool) -> str:
    return "in nn.Sequential" if is_certain else "guessed by the order"


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    return any(
        _QUERIES.match(name) and (isinstance(child, nn.Linear) or is_conv1d(child))
        for name, child in module.named_children()
    )


def _first_of(module: nn.Module) -> Activation | None:
    """Return the first activation in a module, or ``LINEAR`` if a layer with weights is first."""
    for part in module.modules():
        if has_weights(part) or isinstance(part, nn.Softmax | nn.LogSoftmax):
            return LINEAR
        if isinstance(part, NORMS):
            own = getattr(part, "activation", None)  # of this package's batch norms
            if isinstance(own, str):
                return of_function(own, getattr(part, "activation_parameter", None))
        if (found := of_module(part)) is not None:
            return found
    return None


def _activations_of(module: nn.Module) -> set[Activation]:
    """Return the activations that a module has as children, or as functions."""
    own = {found for child in module.children() if (found := of_module(child)) is not None}
    given = (of_attribute(vars(module).get(name)) for name in _ATTRIBUTES)
    return own | {found for found in given if found is not None}


def _last_norm(module: nn.Module) -> str | None:
    """Return the name of the norm after the last convolution of a residual block."""
    is_block = any(hasattr(module, name) for name in _SHORTCUTS)
    if not is_block or isinstance(module, nn.Sequential):
        return None
    inside = [
        (name, child)
        for name, child in module.named_children()
        if name not in _SHORTCUTS and isinstance(child, (*NORMS, _ConvNd))
    ]
    if len(inside) < 4 or not isinstance(inside[-2][1], _ConvNd):
        return None
    name, last = inside[-1]
    return name if isinstance(last, NORMS) else None
