"""Logarithms of a sigmoid, and of 1 minus a sigmoid, that one function computes better."""

from collections.abc import Iterator
from typing import NamedTuple

from lightning_practices.advisor._kinds import CLAMPS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import made_by, places
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_SIGMOIDS = frozenset({"sigmoid"})
_LITTLE = 1e-2  # a number that is added against log(0)
_FROM_ONE = frozenset({"__rsub__", "rsub", "sub"})
_REMEDIES = {
    frozenset({False}): "logsigmoid(logits) in place of the logarithm of a sigmoid",
    frozenset({True}): "logsigmoid(-logits) in place of the logarithm of 1 - sigmoid",
    frozenset({False, True}): "binary_cross_entropy_with_logits(logits, targets), or"
    " logsigmoid(logits) and logsigmoid(-logits)",
}


@rule(
    "LP230", "hint",
    practice="Logarithms of a sigmoid are computed once, by logsigmoid or a loss of logits",
    measures="log of sigmoid, and of 1 - sigmoid",
    healthy="both are right, but for rounding: float32 has sigmoid(17) = 1 and sigmoid(-104) = 0",
    source="torch.nn.BCEWithLogitsLoss: more numerically stable than a plain Sigmoid followed by a"
    " BCELoss, by the log-sum-exp trick",
)  # fmt: skip
def log_of_sigmoid(seen: Observation) -> Iterator[Evidence]:
    found: dict[int, list[tuple[Call, _Side]]] = {}
    for call in seen.step.after_layers:
        if call.output.requires_grad and call.output.is_data and call.name in ("log", "log1p"):
            for side in _sides_of(call):
                maker = side.maker
                logits = maker.inputs[0].origin() if maker.name == "sigmoid" else maker
                found.setdefault(id(logits), []).append((call, side))
    for same in found.values():
        call, side = same[0]
        sides = frozenset(one.is_opposite for _, one in same)
        titles = ["1 - " * one + _title(side.maker) for one in sorted(sides)]
        yield Evidence(
            f"{call} of {' and of '.join(titles)}: it is infinite where the sigmoid is rounded to"
            " 0 or 1, or has no gradient there, if it is clamped",
            _REMEDIES[sides],
            places(seen, side.maker),
        )


def _title(maker: Call) -> str:
    is_named = maker.name in ("sigmoid", "expit")
    return str(maker) if is_named else f"a sigmoid that is written out ({maker.line})"


class _Side(NamedTuple):
    """A sigmoid, and whether it is taken from 1."""

    maker: Call
    is_opposite: bool


def _sides_of(call: Call) -> list[_Side]:
    """Return the sigmoids of which a call is the logarithm."""
    sides = _sides(call.inputs[0]) if call.inputs else []
    if call.name == "log":
        return sides
    made = call.inputs[0].maker() if call.inputs else None  # of log1p
    if made is None or made.name != "neg" or not made.inputs:
        return []
    return [_Side(maker, not side) for maker, side in _sides(made.inputs[0])]


def _sides(value: Value) -> list[_Side]:
    """Return the sigmoids that a value is, or is 1 minus of; empty if it is anything else.

    Clamps, small numbers that are added, and choices by a mask are looked through.
    """
    maker = made_by(value, _SIGMOIDS)
    if maker is not None:
        return [_Side(maker, False)]
    call = value.maker()
    if call is None:
        return []
    if call.name == "where" and len(call.inputs) == 3:
        both = [_sides(x) for x in call.inputs[1:]]
        return [*both[0], *both[1]] if all(both) else []
    data = [x for x in call.inputs if x.is_data]
    if len(data) != 1:
        return []
    if call.name in CLAMPS or (call.name == "add" and _has(call, 0, _LITTLE)):
        return _sides(data[0])
    is_from = call.name in _FROM_ONE and (call.name != "sub" or call.args[0] is not data[0])
    made = data[0].maker()
    if is_from and _has(call, 1, 1 + _LITTLE):
        return [_Side(maker, not side) for maker, side in _sides(data[0])]
    if call.name == "add" and _has(call, 1, 1 + _LITTLE) and made is not None:
        inner = made.inputs[:1] if made.name == "neg" else []
        return [_Side(maker, not side) for x in inner for maker, side in _sides(x)]
    return []


def _has(call: Call, low: float, high: float) -> bool:
    """Return whether an argument of a call is a number between two others."""
    numbers = [x for x in call.args if isinstance(x, int | float)]
    tensors = [x.tensor for x in call.inputs if not x.is_data and x.tensor is not None]
    numbers += [float(x) for x in tensors if x.numel() == 1]
    return any(low <= x <= high for x in numbers)
