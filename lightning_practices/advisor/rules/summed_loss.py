"""A loss that is summed over the batch."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_SAMPLES = 16


@rule(
    "LP229", "hint",
    practice="A loss is a mean over the samples of a batch",
    measures="reduction of torch's losses, and the batch's size",
    healthy='"mean", or "sum" that is divided afterwards',
    source="lecture S3: the batch size and the learning rate",
)  # fmt: skip
def summed_loss(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen):
        shape = loss.prediction.shape
        is_sum = loss.call.kwargs.get("reduction") == "sum" and not loss.is_written_out
        if not is_sum or not shape or shape[0] < _SAMPLES:
            continue
        if any(_divides(user) for user in step.users(loss.call.output)):
            continue
        place = layer_of(loss.prediction)
        yield Evidence(
            f"{loss.call} is a sum over {shape[0]} samples: the step's size grows with the batch",
            f'{loss.call.name}(..., reduction="mean")',
            (place,) if place else (),
        )


def _divides(call: Call) -> bool:
    """Return whether a call scales its input, other than Lightning by one accumulated batch."""
    return call.name in ("div", "true_divide", "mul") and 1 not in call.args
