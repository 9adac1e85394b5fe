"""A loss that is negative, or reaches the step's loss with a minus."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import PASSED
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of, losses_seen, places
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Call, Loss, Value

_ROUNDING = -1e-4
_ABOVE_ZERO = frozenset({"cross_entropy", "nll", "bce", "bce_logits", *REGRESSION})
_KEEPING = frozenset(
    {"mean", "sum", "nanmean", "nansum", "add", "stack", "cat", "sqrt", "exp"}
)  # the sign


@rule(
    "LP221", "error",
    practice="A loss that can't be negative isn't, and is minimised",
    measures="the sign of the first losses of torch's kinds, and that with which they are added up",
    healthy="at least 0, and at least one with a positive sign",
    source="questions on forums about a negative cross entropy",
)  # fmt: skip
def negative_loss(seen: Observation) -> Iterator[Evidence]:
    losses = [loss for _, loss in losses_seen(seen, _ABOVE_ZERO) if not loss.is_written_out]
    for loss in losses:
        low = loss.call.output.statistics
        if low is not None and low.low < _ROUNDING and _is_in_range(loss):
            yield Evidence(
                f"{loss.call} is {low.low:.3g} in the first step, and can't be negative for valid"
                " predictions, targets and weights",
                "look at the range of the target and the signs of the weights",
                tuple(name for name in [layer_of(loss.prediction)] if name),
                {"loss": low.low},
            )
    yield from _likelihoods(seen)
    signs = [_sign(step, loss.call) for step in seen.steps for loss in step.losses]
    if signs and all(sign < 0 for sign in signs):
        for loss in losses[:1]:
            yield Evidence(
                f"{loss.call} reaches the step's loss with a minus: the fit makes it larger",
                "return the loss itself",
                tuple(name for name in [layer_of(loss.prediction)] if name),
            )


def _likelihoods(seen: Observation) -> Iterator[Evidence]:
    """Yield log-probabilities that are the whole loss, without a minus."""
    if any(step.losses for step in seen.steps):
        return
    for call in seen.step.after_layers:
        if call.name in ("log_softmax", "log_sigmoid") and _sign(seen.step, call) > 0:
            yield Evidence(
                f"the step's loss is the output of {call} without a minus: the fit makes the"
                " likelihood smaller",
                "nll_loss(log_probabilities, target), or a minus before the mean",
                places(seen, call),
            )


def _is_in_range(loss: Loss) -> bool:
    """Return whether arguments are in the range of the loss; another rule says if they aren't."""
    prediction, target = loss.prediction.tensor, loss.target.tensor
    if loss.kind == "nll":
        return prediction is not None and bool((prediction <= 0).all())
    if loss.kind in ("bce", "bce_logits"):
        return target is not None and bool(((target >= 0) & (target <= 1)).all())
    return True


def _sign(step: Step, call: Call) -> int:
    """Return the sign with which a call's output is added to a step's loss; 0 if unknown."""
    roots = {id(root) for root in step.roots}
    waiting: list[tuple[Value, int]] = [(call.output, 1)]
    signs, seen = set(), set()
    while waiting:
        value, sign = waiting.pop()
        if (id(value), sign) in seen:
            continue
        seen.add((id(value), sign))
        if id(value) in roots:
            signs.add(sign)
        for user in step.users(value):
            factor = _factor(user, value)
            waiting += [(x, sign * factor) for x in user.outputs]
    return signs.pop() if len(signs) == 1 else 0


def _factor(call: Call, value: Value) -> int:
    """Return the sign of what a call does to one of its inputs; 0 if unknown."""
    if call.name in _KEEPING | PASSED:
        return 1
    if call.name == "neg":
        return -1
    if call.name in ("sub", "__rsub__", "rsub"):
        is_first = bool(call.args) and call.args[0] is value
        return 1 if is_first == (call.name == "sub") else -1
    if call.name in ("mul", "div") and len(call.inputs) == 1:
        number = next((x for x in call.args if isinstance(x, int | float)), 0)
        return (number > 0) - (number < 0)
    return 0
