"""A loss between (N, 1) and (N), which broadcasts to (N, N)."""

import math
from collections.abc import Iterator

import torch

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import LOSSES, Value

_BROADCASTING = LOSSES.keys() | {"sub", "__sub__", "__rsub__", "rsub", "mul", "__mul__"}
_OWN_SHAPES = frozenset({"cross_entropy", "nll", "ctc", "margin"})  # target of another shape

Shape = tuple[int, ...]


@rule(
    "LP213", "error",
    practice="A prediction and its target have the same shape",
    measures="the shapes of a prediction and a target that are subtracted, multiplied or compared",
    healthy="equal; or other numbers of elements, as in losses of several quantiles",
    source="torch.nn.functional.mse_loss, its warning; questions on forums about a regression that"
    " predicts the mean",
)  # fmt: skip
def loss_broadcasts(seen: Observation) -> Iterator[Evidence]:
    named = set()
    for prediction, target, call in _pairs(seen.step):
        result = _broadcast(prediction.shape, target.shape)
        place = layer_of(prediction)
        if result is None or (place, target.shape) in named:
            continue
        named.add((place, target.shape))
        of = f" of {target.source}" if target.source else ""
        yield Evidence(
            f"{call} takes predictions of shape {prediction.shape} and targets{of} of shape"
            f" {target.shape}, which broadcast to {result}: each prediction is drawn to all"
            " targets, and so to their mean",
            "target = target.view_as(prediction)",
            (place,) if place else (),
        )


def _pairs(step: Step) -> Iterator[tuple[Value, Value, str]]:
    """Yield what is compared with a target: prediction, target, and the call."""
    for call in step.after_layers:
        ends = call.inputs
        if call.name not in _BROADCASTING or LOSSES.get(call.name) in _OWN_SHAPES or len(ends) < 2:
            continue
        target, prediction = sorted(ends[:2], key=lambda value: value.requires_grad)
        if target.requires_grad or not prediction.requires_grad:
            continue
        if target.is_data and prediction.is_data and not target.depth and prediction.depth:
            yield prediction, target, str(call)


def _broadcast(a: Shape, b: Shape) -> Shape | None:
    """Return the shape that two shapes broadcast to, if they are one shape but for ones at the end.

    (N, 1) and (1, N) are left out: somebody who writes both means all pairs.
    """
    shorter, longer = sorted((a, b), key=len)
    is_one = longer[: len(shorter)] == shorter and set(longer[len(shorter) :]) == {1}
    if not is_one or math.prod(shorter) < 2:
        return None
    try:
        result = tuple(torch.broadcast_shapes(a, b))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    return result if math.prod(result) > math.prod(a) else None
