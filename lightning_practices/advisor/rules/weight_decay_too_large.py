"""Weight decay that shrinks the weights faster than they can learn."""

from collections.abc import Iterator

from torch.optim import SGD, AdamW

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_SHRUNK = 0.01  # of a weight in a step; recipes are at 2e-3 and below


@rule(
    "LP644", "warning",
    practice="Weight decay shrinks weights slowly",
    measures="learning rate times weight decay of SGD and AdamW: the share of a weight that a step"
    " takes away",
    healthy="up to 2e-3; the threshold is 0.01",
    source="Krogh and Hertz, 1991; Loshchilov and Hutter, 2019, Decoupled weight decay"
    " regularization",
)  # fmt: skip
def weight_decay_too_large(seen: Observation) -> Iterator[Evidence]:
    for optimizer in seen.optimizers:
        if not isinstance(optimizer, SGD | AdamW):
            continue
        for group in optimizer.param_groups:
            rate = max(float(group["lr"]), float(group.get("initial_lr", 0.0)))
            decay = float(group["weight_decay"])
            if rate * decay > _SHRUNK:
                yield Evidence(
                    f"{type(optimizer).__name__} has weight_decay={decay:.3g} at a learning rate of"
                    f" {rate:.3g}: each step takes {rate * decay:.1%} of each weight away, so that"
                    f" without gradients half is gone after {0.69 / (rate * decay):.0f} steps",
                    "weight_decay=1e-4 for SGD, 1e-2 for AdamW, as a first choice",
                    numbers={"shrunk": rate * decay},
                )
