"""Losses that are least where a trained scale shrinks all data to a point."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from lightning_practices.advisor._kinds import PASSED, SOFTMAXES
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import batch_size, layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._slopes import Slopes
from lightning_practices.advisor._small_batches import batch_of, run_again
from lightning_practices.advisor._trace import Call, Value

_JOINS = frozenset({"cat", "concat", "concatenate", "stack", "where", "index_add", "scatter"})
_PRODUCTS = frozenset({"mul", "div", "true_divide"})
_RANDOM = frozenset({"randn", "randn_like", "normal", "rand", "rand_like"})
_MOST = 0.9  # of the elements
_LONGEST = 400  # calls between the batch and the loss


@rule(
    "LP285", "error",
    practice="A trained scale of data has its logarithm in the loss",
    measures="a loss that falls towards one point from all sides and depends on data through their"
    " product with a trained scale alone",
    healthy="the log-determinant of a flow, or the logarithm of a deviation, beside it; scales that"
    " sum to 1; targets that aren't scaled",
    source="Dinh et al., 2017, arXiv:1605.08803, equation 3: the change of variables",
)  # fmt: skip
def scale_without_its_logarithm(seen: Observation) -> Iterator[Evidence]:
    if not seen.module.automatic_optimization or seen.failure is not None:
        return
    if _scaled(seen.step) is None:
        return
    step = run_again(seen, batch_of(seen))
    found = None if step is None else _scaled(step)
    if step is None or found is None:
        return
    value, scale = found
    slopes = Slopes(seen, step, value)
    above, below = slopes.at(1), slopes.at(-1)
    if above is None or below is None:
        return
    shares = [float((x > 0).float().mean()) for x in (above, -below)]
    if min(shares) > _MOST and bool(torch.isfinite(above).all()):
        yield Evidence(
            f"{scale} multiplies data of the batch by a trained scale, and the loss falls to one"
            f" point of {value} from all sides, with no term for the scale: a scale of 0, which"
            " makes all samples equal, is its minimum",
            "for a flow, loss = -(base.log_prob(z).sum(1) + log_det).mean(); for a predicted"
            " deviation, its logarithm beside the scaled error",
            tuple(filter(None, [layer_of(value.output)])),
        )


def _scaled(step: Step) -> tuple[Call, Call] | None:
    """Return the call through which a loss depends on data, and one that scales these."""
    if len(step.roots) != 1:
        return None
    value = _waist(step.roots[0], batch_size(step))
    if value is None or value.call is None or len(value.call.outputs) != 1:
        return None
    carried = _Carriers().of(value)
    is_scaled = carried is not None and carried.scale is not None
    return (value.call, carried.scale) if is_scaled and carried and carried.scale else None


def _waist(root: Value, size: int) -> Value | None:
    """Return the first value before a loss that is made of several, if it has all samples.

    The calls between have no other data, targets or random numbers.
    """
    value = root
    while (call := value.call) is not None and not call.is_layer:
        live = {id(x): x for x in call.inputs if x.is_data or x.requires_grad}
        if len(live) != 1:
            break
        others = [x for x in call.inputs if id(x) not in live]
        if any(x.shape[:1] == (size,) or _is_random(x) for x in others):
            return None
        (value,) = live.values()
    has_samples = len(value.shape) > 1 and value.shape[0] == size > 1
    return value if has_samples and value.requires_grad and value is not root else None


def _is_random(value: Value) -> bool:
    call = value.maker()
    return call is not None and call.name in _RANDOM


class _Carried(NamedTuple):
    """What holds data of the batch that no layer has changed.

    Attributes:
        leaves: ``id`` of the members of the batch.
        scale: A call that multiplies them by a trained scale; ``None`` if there is none.
    """

    leaves: frozenset[int]
    scale: Call | None


_NONE = _Carried(frozenset(), None)


class _Carriers:
    """Finds the data of the batch within a value, by ways without layers."""

    def __init__(self) -> None:
        self._known: dict[int, _Carried | None] = {}

    def of(self, value: Value) -> _Carried | None:
        """Return what a value holds; ``None`` if data are compared with each other."""
        if id(value) not in self._known:
            if len(self._known) > _LONGEST:
                return None
            self._known[id(value)] = self._found(value)
        return self._known[id(value)]

    def _found(self, value: Value) -> _Carried | None:
        call = value.call
        if call is None:
            if value.requires_grad and value.parameter is None and not value.is_data:
                return None  # such as a derivative, which a loss may hold to an equation
            is_batch = value.is_data and value.dtype.is_floating_point
            return _Carried(frozenset([id(value)]), None) if is_batch else _NONE
        if call.is_layer:
            return _NONE
        inputs = [(x, self.of(x)) for x in call.inputs]
        if any(found is None for _, found in inputs):
            return None
        carriers = [(x, found) for x, found in inputs if found is not None and found.leaves]
        if not carriers:
            return _NONE
        leaves = frozenset(leaf for _, found in carriers for leaf in found.leaves)
        scale = next((found.scale for _, found in carriers if found.scale is not None), None)
        if len(carriers) > 1 and call.name not in PASSED | _JOINS:
            is_masked = call.name == "add" and all(_is_masked(x) for x, _ in carriers)
            return _Carried(leaves, scale) if is_masked else None
        if call.name in _PRODUCTS:
            others = [x for x, _ in inputs if x.requires_grad and x is not carriers[0][0]]
            if any(_sums_to_one(x) for x in others):
                return None
            is_above = call.name == "mul" or carriers[0][0] is call.inputs[0]
            scale = call if others and is_above else scale
        return _Carried(leaves, scale)


def _is_masked(value: Value) -> bool:
    """Return whether a value is a product with a constant of several elements, such as a mask."""
    call = value.origin().call
    return (
        call is not None
        and call.name == "mul"
        and any(
            not x.is_data and not x.requires_grad and max(x.shape, default=1) > 1
            for x in call.inputs
        )
    )


def _sums_to_one(value: Value) -> bool:
    return any(call.name in SOFTMAXES for call in value.before() if not call.is_layer)
