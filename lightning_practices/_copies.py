"""Copies of models whose attributes hold tensors with a graph."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def copy_of(module: _Module) -> _Module:
    """Return a copy of a model. Copies of tensors in its attributes have no graph.

    Torch can't copy a tensor with a graph, such as the last activations that a model keeps, or the
    weight that ``torch.nn.utils.weight_norm`` computes.
    """
    copied = {
        id(tensor): tensor.detach().clone()
        for part in module.modules()
        for tensor in _tensors_of(vars(part))
        if not tensor.is_leaf
    }
    try:
        return deepcopy(module, copied)  # takes what has been copied already from this dictionary
    except Exception as error:
        if name := _uncopyable(module):
            error.add_note(
                f"{type(module).__name__} can't be copied, because of its attribute {name}: set"
                " it to None, or detach the tensors in it"
            )
        raise


def _tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_of(each)


def _uncopyable(module: nn.Module) -> str | None:
    """Return the name of the first attribute that can't be copied, or ``None``."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key == "_modules":
                continue
            try:
                deepcopy(value)
            except Exception:
                return f"{name}.{key}".removeprefix(".")
    return None
