"""Softmax over a dimension of size 1."""

import math
from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import places, softmax_dimension, weights_others
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP204", "error",
    practice="A softmax is over two outputs or more",
    measures="the size of the dimension of each softmax between the last layer and the loss",
    healthy="2 and more; 1 only for weights of attention over a single element",
    source="questions on forums about an accuracy that is the share of one class; a one-channel"
    " softmax before a Dice loss in segmentation",
)  # fmt: skip
def softmax_of_one(seen: Observation) -> Iterator[Evidence]:
    for step in seen.steps[:1]:
        for call in step.after_layers:
            shape, dimension = call.output.shape, softmax_dimension(call)
            if (
                dimension is None
                or dimension == 0
                or shape[dimension] != 1
                or math.prod(shape) < 2
                or not (call.output.requires_grad and call.output.is_data)
                or weights_others(step, call.output)
            ):
                continue
            value = 0 if call.name == "log_softmax" else 1
            yield Evidence(
                f"{call} is over dimension {dimension} of a tensor of shape {shape}, which has one"
                f" element: it is always {value} and has no gradient",
                "use sigmoid for one output (nn.BCEWithLogitsLoss() has it within), or two outputs",
                places(seen, call),
            )
