"""Optimizers whose eps is 0 in the precision of the weights."""

from collections.abc import Iterator

import torch

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_DIVIDING = frozenset({"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop"})


@rule(
    "LP663", "error",
    practice="An optimizer's eps is above 0 in the precision of its weights",
    measures="eps of optimizers of float16 weights, after rounding to float16",
    healthy="float32 weights, as with precision='16-mixed'",
    source="reports of nan after the first step with precision='16-true' and Adam",
)  # fmt: skip
def half_precision_optimizer(seen: Observation) -> Iterator[Evidence]:
    for optimizer in seen.optimizers:
        for group in getattr(optimizer, "param_groups", []):
            halves = [p for p in group["params"] if p.dtype == torch.float16]
            eps = group.get("eps")
            if not halves or type(optimizer).__name__ not in _DIVIDING or eps is None:
                continue
            if not float(torch.tensor(eps).half()):
                names = [seen.names[id(p)] for p in halves if id(p) in seen.names]
                yield Evidence(
                    f"{type(optimizer).__name__} divides by the root of its second moments plus"
                    f" eps={eps:g}, and both are 0 in float16 for gradients that are small: the"
                    " update is then nan or infinite",
                    "Trainer(precision='16-mixed') or 'bf16-mixed', which keep float32 weights",
                    tuple(names[:1]),
                    {"eps": float(eps)},
                )
                break
