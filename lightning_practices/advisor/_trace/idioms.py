"""Clamps and rectifiers that are written by other functions, such as ``maximum(x, zeros)``."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_practices.advisor._trace.calls import Value

_LOWEST = frozenset({"maximum", "max", "fmax"})  # of two tensors
_HIGHEST = frozenset({"minimum", "min", "fmin"})
_CLAMPS = {"clamp": ("min", "max"), "clip": ("min", "max"), "clamp_min": ("min",),
           "clamp_max": ("max",)}  # fmt: skip
_ABOVE = frozenset({"gt", "ge", "greater", "greater_equal"})
_BELOW = frozenset({"lt", "le", "less", "less_equal"})
_PRODUCTS = frozenset({"mul", "multiply"})


class Given(NamedTuple):
    """The name and arguments of a call, with a :class:`Value` in place of each tensor."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def plain(given: Given, tensors: tuple[tuple[Any, ...], dict[str, Any]]) -> Given:
    """Return a call as ``clamp(x, min, max)`` of numbers or ``relu(x)``, if it is either.

    Args:
        given: The call.
        tensors: Its arguments before tensors were replaced.
    """
    args, kwargs = tensors
    if given.name in _LOWEST | _HIGHEST:
        return _of_two(given, [*args, *kwargs.values()]) or given
    if given.name in _CLAMPS:
        return _of_numbers(given, args, kwargs) or given
    rectified = _rectified(given, args)
    return given if rectified is None else Given("relu", (rectified,), {})


def _of_two(given: Given, tensors: list[Any]) -> Given | None:
    """Return the clamp that the larger or smaller one of a tensor and a constant is."""
    values = [*given.args, *given.kwargs.values()]
    if len(values) != 2 or not all(isinstance(x, Value) for x in values):
        return None
    for place in (1, 0):
        x, other = values[1 - place], values[place]
        number = _number(other, tensors[place], given.name in _LOWEST)
        if number is not None and (x.is_data or x.requires_grad):
            return Given("clamp", (x, *((number, None) if given.name in _LOWEST
                                        else (None, number))), {})  # fmt: skip
    return None


def _of_numbers(given: Given, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given | None:
    """Return a clamp whose bounds are tensors as one whose bounds are numbers."""
    names = _CLAMPS[given.name]
    bounds: dict[str, Any] = {"min": None, "max": None}
    changed = False
    for place, name in enumerate(names, start=1):
        value = given.kwargs.get(name, given.args[place] if len(given.args) > place else None)
        bounds[name] = value
        if isinstance(value, Value):
            tensor = kwargs.get(name, args[place] if len(args) > place else None)
            bounds[name] = _number(value, tensor, name == "min")
            changed = True
            if bounds[name] is None:
                return None
    x = given.args[0] if given.args else given.kwargs.get("input")
    return Given("clamp", (x, bounds["min"], bounds["max"]), {}) if changed else None


def _number(value: Value, x: Any, is_low: bool) -> float | None:
    """Return the bound that a tensor is: that of its elements which bounds the least."""
    if value.requires_grad or not isinstance(x, Tensor) or not x.numel() or x.is_complex():
        return None
    low, high = (float(end) for end in torch.aminmax(x.detach()))
    if value.is_data and low != high:
        return None
    return low if is_low else high


def _rectified(given: Given, args: tuple[Any, ...]) -> Value | None:
    """Return the argument of a ReLU that is written by a mask or a threshold."""
    found = given.args
    if given.name == "threshold" and found and [*found[1:3]] == [0, 0]:
        return found[0] if isinstance(found[0], Value) else None
    if given.name in _PRODUCTS and len(found) == 2:
        pairs = [(found[0], found[1]), (found[1], found[0])]
        masked = next((x for x, mask in pairs if _side(mask, x) == 1), None)
        return masked if found[1] != 0.5 else _half(found[0])
    if given.name in ("div", "true_divide") and len(found) == 2 and found[1] == 2:
        return _half(found[0])
    if given.name == "where" and len(found) == 3:
        mask, chosen, other = found
        if _is_zero(other, args[2]) and _side(mask, chosen) == 1:
            return _value(chosen)
        return _value(other) if _is_zero(chosen, args[1]) and _side(mask, other) == -1 else None
    if given.name in ("masked_fill", "__setitem__") and len(found) == 3:
        is_rectifier = _is_zero(found[2], args[2]) and _side(found[1], found[0]) == -1
        return _value(found[0]) if is_rectifier else None
    return None


def _half(total: Any) -> Value | None:
    """Return ``x`` of ``x + abs(x)``."""
    call = total.call if isinstance(total, Value) else None
    if call is None or call.name != "add" or len(call.inputs) != 2:
        return None
    for x, other in (call.inputs, call.inputs[::-1]):
        if other.call is not None and other.call.name == "abs" and other.call.inputs[0] is x:
            return x
    return None


def _value(x: Any) -> Value | None:
    return x if isinstance(x, Value) else None


def _is_zero(value: Any, x: Any) -> bool:
    if isinstance(value, Value):
        return _number(value, x, True) == 0 and _number(value, x, False) == 0
    return isinstance(value, int | float) and value == 0


def _side(mask: Any, x: Any) -> int:
    """Return 1 for a mask of the elements of ``x`` above 0, -1 for those below, and 0 for others.

    Casts of the mask are followed.
    """
    call = mask.maker() if isinstance(mask, Value) else None
    if call is None or not isinstance(x, Value) or not call.inputs:
        return 0
    first = call.args[0] if call.args else None
    if len(call.args) != 2 or call.args[1] != 0 or not isinstance(first, Value):
        return 0
    if first.origin() is not x.origin():
        return 0
    return (call.name in _ABOVE) - (call.name in _BELOW)
