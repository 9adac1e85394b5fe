"""A loss that is added twice, where its other direction is meant."""

from collections.abc import Iterator

import torch

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Loss


@rule(
    "LP263", "warning",
    practice="The terms of a loss differ",
    measures="cross entropies in one sum with the same logits, targets and arguments",
    healthy="none; a symmetric loss transposes the similarities in one of them",
    source="Radford et al., 2021, arXiv:2103.00020: cross entropy over rows, and over columns",
)  # fmt: skip
def equal_losses(seen: Observation) -> Iterator[Evidence]:
    for root in seen.step.roots:
        calls = {id(call) for call in root.before()}
        losses = [x for x in seen.step.losses if x.kind == "cross_entropy" and id(x.call) in calls]
        for place, first in enumerate(losses):
            if any(_are_equal(first, second) for second in losses[place + 1 :]):
                yield Evidence(
                    f"{first.call} is in the loss twice, with the same logits and targets: the"
                    " second adds nothing",
                    "cross_entropy(logits.t(), targets) for the other direction, or one of them",
                    tuple(filter(None, [layer_of(first.prediction)])),
                )
                return


def _are_equal(first: Loss, second: Loss) -> bool:
    a, b = first.target.tensor, second.target.tensor
    is_same = first.prediction is second.prediction and first.prediction.requires_grad
    options = [
        (
            loss.call.args[2:],
            {k: v for k, v in loss.call.kwargs.items() if k not in ("input", "target")},
        )
        for loss in (first, second)
    ]
    if a is None or b is None or not is_same or options[0] != options[1]:
        return False
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
