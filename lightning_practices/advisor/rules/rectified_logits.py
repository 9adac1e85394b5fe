"""Logits that can't be negative, or stay within -1 and 1."""

import math
from collections.abc import Callable, Iterator

from lightning_practices.advisor._kinds import CLAMPS, RECTIFIERS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import (
    activation,
    losses_seen,
    made_by,
    makers,
    places,
    reach,
)
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_POSITIVE = RECTIFIERS | {"softplus"}
_BOUNDED = frozenset({"tanh", "hardtanh", "softsign"})
_LOSSES = frozenset({"cross_entropy", "bce_logits", "nll", "bce"})
_NARROW = 2.0  # the range of tanh
_INNER = {"nll": ("log_softmax",), "bce": ("sigmoid",)}  # the activation that makes the argument


@rule(
    "LP210", "error",
    practice="Logits have no activation",
    measures="a rectifier before cross entropy, or before its sigmoid or softmax",
    healthy="none; a rectifier before a mean over positions is no such",
    source="UMLAUT (2021); questions on forums about a loss that stays at log(classes)",
)  # fmt: skip
def rectified_logits(seen: Observation) -> Iterator[Evidence]:
    for name, maker in _logits(seen, _POSITIVE):
        yield Evidence(
            f"{name} gets the output of {maker} as logits, which are never negative: no class can"
            " be ruled out, and outputs at 0 have no gradient",
            f"remove {activation(maker)} after the last layer",
            places(seen, maker),
        )


@rule(
    "LP211", "warning",
    practice="Logits aren't bounded",
    measures="tanh, or a clamp to a range of 2, before cross entropy, or before its sigmoid or"
    " softmax",
    healthy="none; one that is scaled by a temperature is no such",
    source="questions on forums; -log sigmoid(1) = 0.31 is the least loss",
)  # fmt: skip
def bounded_logits(seen: Observation) -> Iterator[Evidence]:
    for name, maker in _logits(seen, _BOUNDED):
        yield Evidence(
            f"{name} gets the output of {maker} as logits, which stay in a range of 2: the"
            " loss can't come near 0",
            f"remove {activation(maker)} after the last layer",
            places(seen, maker),
        )


def _logits(seen: Observation, names: frozenset[str]) -> Iterator[tuple[str, Call]]:
    """Yield each loss whose logits one of ``names`` made, with the call that did."""
    for _, loss in losses_seen(seen, _LOSSES):
        value: Value | None = loss.prediction
        if loss.kind in _INNER:
            inner = makers(loss.prediction)[:1]
            is_one = bool(inner) and activation(inner[0]) in _INNER[loss.kind]
            value = inner[0].inputs[0] if is_one and inner[0].inputs else None
        maker = made_by(value, names) if value is not None else None
        if value is not None and maker is None:
            maker = _clamp(value, _is_rectifier if names is _POSITIVE else _is_narrow)
        if maker is not None and (maker.name != "hardtanh" or _is_narrow(*reach(maker.output))):
            yield f"{loss.call.name} ({loss.call.line})", maker


def _clamp(value: Value, is_meant: Callable[[float, float], bool]) -> Call | None:
    """Return a clamp of a layer's output whose ends are as ``is_meant`` says."""
    call = value.maker()
    if call is None or call.name not in CLAMPS:
        return None
    found = makers(value)
    return call if is_meant(*reach(value)) and bool(found) and found[0].is_layer else None


def _is_rectifier(low: float, high: float) -> bool:
    return low == 0.0 and high == math.inf


def _is_narrow(low: float, high: float) -> bool:
    return high - low <= _NARROW
