"""Copies of models whose attributes hold tensors with a graph."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def copy_of(module: _Module, shares: tuple[type, ...] | None = None) -> _Module:
    """Return a copy of a model. Copies of tensors in its attributes have no graph.

    Torch can't copy a tensor with a graph, such as the last activations that a model keeps, or the
    weight that ``torch.nn.utils.weight_norm`` computes.

    Args:
        module: The model.
        shares: Classes whose objects among the attributes are shared with the copy, such as
            datasets. Attributes that can't be copied, such as locks, are then shared too. ``None``
            to share nothing, and to raise for what can't be copied.
    """
    copied: dict[int, Any] = {
        id(tensor): tensor.detach().clone()
        for part in module.modules()
        for tensor in _tensors_of(vars(part))
        if not tensor.is_leaf
    }
    if shares is not None:
        own = [value for part in module.modules() for value in vars(part).values()]
        copied |= {id(value): value for value in own if isinstance(value, shares)}
    try:
        return deepcopy(module, dict(copied))  # takes from the dictionary what is copied already
    except Exception as error:
        uncopyable = _uncopyable(module, copied)
        if shares is not None and uncopyable:
            return deepcopy(module, copied | {id(value): value for value in uncopyable.values()})
        for name in uncopyable:
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


def _uncopyable(module: nn.Module, copied: dict[int, Any]) -> dict[str, Any]:
    """Return the attributes that can't be copied, by name."""
    found = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key == "_modules":
                continue
            try:
                deepcopy(value, dict(copied))
            except Exception:
                found[f"{name}.{key}".removeprefix(".")] = value
    return found
