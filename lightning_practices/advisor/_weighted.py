"""Sums whose terms have weights that are numbers."""

from collections.abc import Iterator
from numbers import Real
from typing import Any

from lightning_practices.advisor._signs import unshaped
from lightning_practices.advisor._trace import Call, Value

_DIFFERENCES = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "rsub": (-1.0, 1.0),
                "__rsub__": (-1.0, 1.0)}  # fmt: skip


def weighted_terms(value: Value, weight: float = 1.0) -> Iterator[tuple[Value, float]]:
    """Yield the terms of a sum of tensors, each with the number that it is multiplied by.

    Sums, differences, products with a number or a tensor of one element, ``lerp`` and means are
    looked through.
    """
    value = unshaped(value)
    parts = [] if value.call is None else _parts(value.call)
    if not parts:
        yield value, weight
    for part, factor in parts:
        yield from weighted_terms(part, weight * factor)


def number_of(x: Any) -> float | None:
    """Return the number that an argument is; ``None`` for tensors of several elements."""
    if isinstance(x, Value):
        is_number = x.tensor is not None and x.tensor.numel() == 1 and not x.requires_grad
        return float(x.tensor) if is_number and not x.is_data else None  # type: ignore[arg-type]
    return float(x) if isinstance(x, Real) else None


def _parts(call: Call) -> list[tuple[Value, float]]:
    """Return the terms of one call with their factors; none if it isn't a sum or a product."""
    args = call.args
    if call.name == "mean" and call.inputs:
        return [(call.inputs[0], 1.0)]
    if call.name == "neg" and call.inputs:
        return [(call.inputs[0], -1.0)]
    if call.name == "lerp" and len(args) == 3:
        return _lerp(args)
    if len(args) != 2 or call.kwargs:
        return []
    if call.name in _DIFFERENCES:
        pairs = zip(args, _DIFFERENCES[call.name], strict=True)
        return [(x, factor) for x, factor in pairs if isinstance(x, Value) and number_of(x) is None]
    if call.name == "mul":
        for x, other in (args, args[::-1]):
            number = number_of(other)
            if isinstance(x, Value) and number is not None:
                return [(x, number)]
    if call.name in ("div", "true_divide") and isinstance(args[0], Value):
        number = number_of(args[1])
        return [(args[0], 1 / number)] if number else []
    return []


def _lerp(args: tuple[Any, ...]) -> list[tuple[Value, float]]:
    start, end, share = args
    number = number_of(share)
    if number is None or not isinstance(start, Value) or not isinstance(end, Value):
        return []
    return [(start, 1 - number), (end, number)]
