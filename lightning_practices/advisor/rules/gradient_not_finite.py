"""Gradients that are not finite although the loss is."""

import math
from collections.abc import Iterator

from lightning_practices._names import count
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP121", "error",
    practice="Gradients are finite",
    measures="the norm of each parameter's gradient after the first step, where the loss is finite",
    healthy="finite; scaled gradients of float16 may overflow in the first steps",
    source="torch's notes on autograd: the derivative of sqrt at 0 is infinite, and infinity times"
    " 0 is nan",
    explained_by=("LP301", "LP405", "LP222"),
)  # fmt: skip
def gradients_not_finite(seen: Observation) -> Iterator[Evidence]:
    if seen.observer.precision.startswith("16"):
        return
    losses = [root.statistics for root in seen.step.roots if root.statistics is not None]
    if not losses or any(loss.finite < 1 for loss in losses):
        return
    names = [
        name
        for name, gradient in seen.step.gradients.items()
        if gradient is not None and math.isnan(gradient.norm)
    ]
    if names:
        yield Evidence(
            f"the loss is finite, but the gradients of {count(len(names), 'parameter')} are nan or"
            " infinite after the first step, so the optimizer makes the weights nan: a function has"
            " an infinite derivative at one of its inputs, such as sqrt, norm or pow at 0",
            "torch.sqrt(x + 1e-8), or x.clamp(min=1e-8) before the function; Trainer("
            "detect_anomaly=True) names the line",
            tuple(names),
            {"parameters": float(len(names))},
        )
