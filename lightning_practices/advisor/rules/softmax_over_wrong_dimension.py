"""Softmax over the batch, or over another dimension than that of the classes."""

from collections.abc import Iterator

import torch

from lightning_practices.advisor._kinds import DROPOUTS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import (
    batch_size,
    losses_seen,
    makers,
    places,
    softmax_dimension,
    weights_others,
)
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Loss, Value

_FAR = 0.05  # from 1, of a row's sum
_OF_SAMPLES = frozenset({"bce", "mse", "l1", "smooth_l1", "huber"})


@rule(
    "LP206", "error",
    practice="A softmax is over the classes of a sample",
    measures="the dimension of each softmax between the last layer and the loss, and of those that"
    " weigh features",
    healthy="the classes' dimension; the batch's only for weights of pooling, or of a square"
    " matrix of similarities",
    source="torch.nn.Softmax: the implicit choice of dim; questions on forums about dim=0",
)  # fmt: skip
def softmax_over_wrong_dimension(seen: Observation) -> Iterator[Evidence]:
    named = set()
    for _, loss in losses_seen(seen, {"nll", *_OF_SAMPLES}):
        for call in makers(loss.prediction)[:1]:
            if _is_wrong_for(loss, call):
                named.add(call.index)
                yield _evidence(seen, call)
    step = seen.step
    for call in step.after_layers:
        if call.index not in named and _is_over_the_batch(step, call):
            named.add(call.index)
            yield _evidence(seen, call)
    for call in step.calls:
        if call.index not in named and _weighs_within_samples(step, call):
            yield Evidence(
                f"{call} is over dimension 0, that of the batch's {call.output.shape[0]} samples,"
                f" of a tensor of shape {call.output.shape}, whose result weighs what is summed"
                " within each sample: the weights of one sample don't sum to 1, and depend on the"
                " others",
                f"{call.name}(..., dim=1)",
                places(seen, call),
            )


def _is_wrong_for(loss: Loss, call: Call) -> bool:
    """Return whether the loss takes the result of a softmax along another dimension."""
    dimension, x = softmax_dimension(call), loss.prediction.tensor
    if dimension is None or x is None or x.numel() != torch.Size(call.output.shape).numel():
        return False
    if loss.kind != "nll":  # one output for each sample
        shape = loss.prediction.shape
        return len(call.output.shape) == 1 and len(shape) <= 2 and shape[0] > 1 == _width(shape)
    if x.dim() < 2 or x.shape[1] < 2 or call.name != "log_softmax":
        return False
    sums = x.float().exp().sum(1)
    return bool(((sums - 1).abs() > _FAR).float().mean() > 0.5)


def _width(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 2 else 1


def _is_over_the_batch(step: Step, call: Call) -> bool:
    shape, samples = call.output.shape, batch_size(step)
    return (
        softmax_dimension(call) == 0
        and len(shape) > 1
        and min(shape[:2]) > 1
        and shape[:2] != (shape[0], shape[0])
        and samples > 1
        and shape[0] % samples == 0
        and call.output.requires_grad
        and call.output.is_data
        and not weights_others(step, call.output)
    )


def _weighs_within_samples(step: Step, call: Call) -> bool:
    """Return whether weights that sum to 1 over the batch are used for each sample by itself.

    A pooling of the samples of a bag sums over their dimension, which is gone then.
    """
    shape, samples = call.output.shape, batch_size(step)
    is_square = len(shape) == 2 and shape[0] == shape[1]
    if softmax_dimension(call) != 0 or len(shape) < 2 or shape[0] != samples or is_square:
        return False
    if not (samples > 1 and shape[1] > 1 and call.output.is_data):
        return False
    return any(_keeps_samples(step, value, samples) for value in _same_rows(step, call.output))


def _same_rows(step: Step, value: Value) -> Iterator[Value]:
    """Yield a value, and what views and dropout make of it that leave the first dimension."""
    yield value
    for call in step.users(value):
        rest = [x for x in call.outputs if len(x.shape) >= len(value.shape)]
        if call.name in _LEAVING | DROPOUTS and rest and rest[0].shape[0] == value.shape[0]:
            yield from _same_rows(step, rest[0])


def _keeps_samples(step: Step, value: Value, samples: int) -> bool:
    """Return whether a product of weights with features is summed over another dimension."""
    for call in step.users(value):
        others = [x for x in call.inputs if x is not value]
        if not others or not any(x.is_data and len(x.shape) > 2 for x in others):
            continue
        if call.name == "mul":
            sums = [one for one in step.users(call.output) if one.name in ("sum", "mean")]
            if any(_is_over_others(one) for one in sums):
                return True
        is_product = call.name in ("matmul", "bmm") and len(value.shape) > 2
        if is_product and call.output.shape[0] == samples:
            return True
        if call.name == "einsum" and _einsum_keeps(call, value):
            return True
    return False


def _is_over_others(call: Call) -> bool:
    """Return whether a sum is over other dimensions than the first."""
    dimensions = call.get(1, "dim")
    dimensions = (dimensions,) if isinstance(dimensions, int) else dimensions
    count = len(call.inputs[0].shape)
    return bool(dimensions) and all(int(one) % count for one in dimensions)


def _einsum_keeps(call: Call, value: Value) -> bool:
    """Return whether the first index of a factor is one of the result's."""
    equation = call.args[0] if call.args else None
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return False
    factors, result = equation.replace(" ", "").split("->")
    place = next((i for i, x in enumerate(call.inputs) if x is value), 0)
    return factors.split(",")[place][:1] in set(result)


_LEAVING = frozenset({"unsqueeze", "__getitem__", "contiguous", "clone", "view", "reshape", "to"})


def _evidence(seen: Observation, call: Call) -> Evidence:
    remedy = f"{call.name}(..., dim=1), or dim=-1 where the classes are last"
    return Evidence(
        f"{call} is over dimension {softmax_dimension(call)} of a tensor of shape"
        f" {call.output.shape}: samples of the batch compete, and the classes of one don't sum to"
        " 1",
        remedy if len(call.output.shape) > 1 else "use sigmoid for one output of each sample",
        places(seen, call),
    )
