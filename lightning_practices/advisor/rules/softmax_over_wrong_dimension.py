"""Softmax over the batch, or over another dimension than that of the classes."""

from collections.abc import Iterator

import torch

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
from lightning_practices.advisor._trace import Call, Loss

_FAR = 0.05  # from 1, of a row's sum
_OF_SAMPLES = frozenset({"bce", "mse", "l1", "smooth_l1", "huber"})


@rule(
    "LP206", "error",
    practice="A softmax is over the classes of a sample",
    measures="the dimension of each softmax between the last layer and the loss",
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
            yield _evidence(seen, call)


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


def _evidence(seen: Observation, call: Call) -> Evidence:
    remedy = f"{call.name}(..., dim=1), or dim=-1 where the classes are last"
    return Evidence(
        f"{call} is over dimension {softmax_dimension(call)} of a tensor of shape"
        f" {call.output.shape}: samples of the batch compete, and the classes of one don't sum to"
        " 1",
        remedy if len(call.output.shape) > 1 else "use sigmoid for one output of each sample",
        places(seen, call),
    )
