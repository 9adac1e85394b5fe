"""Which part of a layer's output a value is."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from lightning_practices.advisor._kinds import PASSED
from lightning_practices.advisor._trace import Call, Value


class Part(NamedTuple):
    """A range of a dimension that is taken.

    Attributes:
        place: The dimension, from the last one: -1, -2, ...
        begin: The first index.
        end: The index after the last.
    """

    place: int
    begin: int
    end: int


def is_within(inner: tuple[Part, ...], outer: tuple[Part, ...]) -> bool:
    """Return whether a part of an output lies in another part of the same output."""
    return len(inner) >= len(outer) and all(
        a.place == b.place and b.begin <= a.begin and a.end <= b.end
        for a, b in zip(inner, outer, strict=False)
    )


def parts_of(value: Value) -> tuple[Part, ...]:
    """Return the parts that are taken one after another, from the layer on, along features.

    Samples along the first dimension, and those that a mask or indices choose, don't count.
    """
    found: list[Part] = []
    while (call := value.call) is not None and call.name in PASSED and call.inputs:
        found[:0] = _taken(call, value)
        value = call.inputs[0]
    return tuple(found)


def _taken(call: Call, value: Value) -> Iterator[Part]:
    shape = call.inputs[0].shape
    if call.name == "__getitem__":
        yield from _indexed(call.get(1, "idx"), shape)
    elif call.name in ("select", "narrow"):
        place, begin = (
            call.get(1, "dim"),
            call.get(2, "index" if call.name == "select" else "start"),
        )
        length = 1 if call.name == "select" else call.get(3, "length")
        if all(isinstance(x, int) for x in (place, begin, length)):
            yield from _range(place, begin % shape[place], length, shape)
    elif call.name in ("chunk", "split", "tensor_split", "unbind"):
        place = call.get(1, "dim", 0) if call.name == "unbind" else call.get(2, "dim", 0)
        before = next((i for i, one in enumerate(call.outputs) if one is value), 0)
        if call.name == "unbind":
            yield from _range(place, before, 1, shape)
        else:
            begin = sum(one.shape[place] for one in call.outputs[:before])
            yield from _range(place, begin, value.shape[place], shape)


def _indexed(index: object, shape: tuple[int, ...]) -> Iterator[Part]:
    entries = list(index) if isinstance(index, tuple) else [index]
    entries = [one for one in entries if one is not None]
    if any(one is Ellipsis for one in entries):
        place = next(i for i, one in enumerate(entries) if one is Ellipsis)
        entries[place : place + 1] = [slice(None)] * (len(shape) - len(entries) + 1)
    for place, one in enumerate(entries[: len(shape)]):
        if isinstance(one, slice) and not any(
            isinstance(x, Value | Tensor) for x in (one.start, one.stop, one.step)
        ):
            begin, end, _ = one.indices(shape[place])
            yield from _range(place, begin, end - begin, shape)
        elif isinstance(one, int) and not isinstance(one, bool) and shape[place]:
            yield from _range(place, one % shape[place], 1, shape)


def _range(place: int, begin: int, length: int, shape: tuple[int, ...]) -> Iterator[Part]:
    place %= len(shape)
    if place and length != shape[place]:
        yield Part(place - len(shape), begin, begin + length)
