"""A loss that is summed over the batch."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_SAMPLES = 16


@rule(
    "LP229", "hint",
    practice="A loss is a mean over the samples of a batch",
    measures="reduction of torch's losses, sums of losses over all samples, and the batch's size",
    healthy='"mean", or "sum" that is divided afterwards',
    source="lecture S3: the batch size and the learning rate",
)  # fmt: skip
def summed_loss(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen):
        shape = loss.prediction.shape
        if not shape or shape[0] < _SAMPLES:
            continue
        is_sum = loss.call.kwargs.get("reduction") == "sum" and not loss.is_written_out
        call = loss.call if is_sum else _sum(step, loss.call.output)
        if call is None or _is_divided(step, call):
            continue
        place = layer_of(loss.prediction)
        yield Evidence(
            f"{call} is a sum over {shape[0]} samples: the step's size grows with the batch",
            f'{call.name}(..., reduction="mean")' if is_sum else "mean() in place of sum()",
            (place,) if place else (),
        )


def _sum(step: Step, losses: Value) -> Call | None:
    """Return the call that adds up the losses of all samples, or ``None``."""
    for user in step.users(losses) if losses.shape else ():
        if not user.outputs:
            continue
        if user.name == "sum" and not user.output.shape:
            return user
        is_of_samples = user.output.shape[:1] == losses.shape[:1]
        if is_of_samples and (found := _sum(step, user.output)) is not None:
            return found
    return None


def _is_divided(step: Step, call: Call) -> bool:
    """Return whether the result of a call is scaled on a way to the loss of the step."""
    users = step.users(call.output)
    return any(_divides(user) or _is_divided(step, user) for user in users if user.outputs)


def _divides(call: Call) -> bool:
    """Return whether a call scales its input, other than Lightning by one accumulated batch."""
    return call.name in ("div", "true_divide", "mul") and 1 not in call.args
