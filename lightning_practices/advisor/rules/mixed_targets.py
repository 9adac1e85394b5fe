"""Mixed samples whose targets are mixed by the weights of the other sample."""

from collections.abc import Iterator
from typing import NamedTuple

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import unshaped
from lightning_practices.advisor._trace import Call, Loss, Value
from lightning_practices.advisor._weighted import weighted_terms

_ORDERS = frozenset({"__getitem__", "index_select", "flip", "roll"})
_ENCODINGS = frozenset({"one_hot"})
_SAME = 1e-3
_APART = 0.02  # of both weights


class _Mix(NamedTuple):
    """A value mixed with itself in another order of the samples.

    Attributes:
        call: The call that adds them up, or the loss.
        order: What tells the order from others.
        own: The weight of the samples in their own order, as a share of both weights.
    """

    call: Call
    order: object
    own: float


@rule(
    "LP266", "error",
    practice="Targets are mixed by the weights of their inputs",
    measures="the weight of a sample in a mixed input, and that of its target in the loss or in the"
    " mixed target",
    healthy="equal",
    source="Zhang et al., 2018, arXiv:1710.09412: mixup",
)  # fmt: skip
def mixed_targets(seen: Observation) -> Iterator[Evidence]:
    for step in seen.steps:
        for loss, target in _mixed_targets(step):
            for mix in _mixed_inputs(loss.prediction):
                is_swapped = abs(mix.own - (1 - target.own)) < _SAME
                if mix.order == target.order and is_swapped and abs(mix.own - 0.5) > _APART / 2:
                    yield Evidence(
                        f"{mix.call} mixes inputs with weights {mix.own:.3g} and"
                        f" {1 - mix.own:.3g}, and {loss.call} weighs their targets by"
                        f" {target.own:.3g} and {1 - target.own:.3g}: the weights are exchanged",
                        "x = lam * x + (1 - lam) * x[order], and"
                        " loss = lam * criterion(output, y) + (1 - lam) * criterion(output,"
                        " y[order])",
                        tuple(filter(None, [layer_of(loss.prediction)])),
                        {"input": mix.own, "target": target.own},
                    )
                    return


def _mixed_inputs(prediction: Value) -> Iterator[_Mix]:
    for call in prediction.before():
        if call.name in ("add", "sub", "lerp") and call.outputs and call.output.depth == 0:
            yield from _mixes(call, list(weighted_terms(call.output)))


def _mixed_targets(step: Step) -> Iterator[tuple[Loss, _Mix]]:
    """Yield mixed targets, and losses of a prediction for both targets in one sum."""
    losses = {id(loss.call): loss for loss in step.losses}
    for loss in losses.values():
        for mix in _mixes(loss.call, list(weighted_terms(loss.target))):
            yield loss, mix
    for root in step.roots:
        found = [
            (losses[id(value.call)], weight)
            for value, weight in weighted_terms(root)
            if value.call is not None and id(value.call) in losses
        ]
        for place, (loss, weight) in enumerate(found):
            same = [
                (other.target, factor)
                for other, factor in found[place + 1 :]
                if unshaped(other.prediction) is unshaped(loss.prediction)
            ]
            for other in same:
                for mix in _mixes(loss.call, [(loss.target, weight), other]):
                    yield loss, mix


def _mixes(call: Call, terms: list[tuple[Value, float]]) -> Iterator[_Mix]:
    if len(terms) != 2 or not sum(weight for _, weight in terms):
        return
    total = sum(weight for _, weight in terms)
    for (own, weight), (other, _) in (terms, terms[::-1]):
        order = _order(_plain(own), _plain(other))
        if order is not None:
            yield _Mix(call, order, weight / total)


def _plain(value: Value) -> Value:
    value = unshaped(value)
    while value.call is not None and value.call.name in _ENCODINGS and value.call.inputs:
        value = unshaped(value.call.inputs[0])
    return value


def _order(own: Value, other: Value) -> object:
    """Return what tells the order in which ``other`` has the samples of ``own``, or ``None``."""
    call = other.call
    if call is None or call.name not in _ORDERS or not call.inputs:
        return None
    if _plain(call.inputs[0]) is not own:
        return None
    parts = [id(x) if isinstance(x, Value) else repr(x) for x in call.args[1:]]
    options = sorted((key, id(x) if isinstance(x, Value) else repr(x))
                     for key, x in call.kwargs.items())  # fmt: skip
    return call.name, tuple(parts), tuple(options)
