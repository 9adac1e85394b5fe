"""The numbers by which the elements of a value are multiplied within the loss of a step."""

import math

from lightning_practices.advisor._kinds import CASTS
from lightning_practices.advisor._observation import Step
from lightning_practices.advisor._trace import Call, Loss, Value
from lightning_practices.advisor._weighted import number_of

_SAME = CASTS | {
    "reshape", "view", "squeeze", "unsqueeze", "flatten", "contiguous", "clone", "ravel", "permute",
    "transpose", "t", "cat", "stack", "sum", "mean", "add", "sub", "expand",
}  # fmt: skip
_FROM = frozenset({"rsub", "__rsub__"})
_DISTANCES = frozenset({"pow", "square", "mul", "abs"})


def element_weight(step: Step, value: Value) -> float | None:
    """Return by what a step's loss changes with an element of a value, if that is one number.

    Sums, means, and products with numbers are followed. ``None`` if others are on the way.
    """
    roots = {id(root) for root in step.roots}
    known: dict[int, float | None] = {}

    def weight(value: Value) -> float | None:
        if id(value) not in known:
            total = 1.0 if id(value) in roots else 0.0
            for user in step.users(value):
                if id(user) not in step.reach:
                    continue
                factor, after = _factor(user, value), weight(user.output)
                if factor is None or after is None:
                    known[id(value)] = None
                    return None
                total += factor * after * _copies(user, value)
            known[id(value)] = total
        return known[id(value)]

    return weight(value)


def loss_weight(step: Step, loss: Loss) -> float | None:
    """Return :func:`element_weight` of the errors that a loss holds for each element."""
    if loss.is_written_out:
        distances = [one for one in step.users(loss.call.output) if one.name in _DISTANCES]
        return element_weight(step, distances[0].output) if len(distances) == 1 else None
    found = element_weight(step, loss.call.output)
    if found is None or loss.call.kwargs.get("reduction", "mean") != "mean":
        return found
    return found / max(math.prod(loss.prediction.shape), 1)


def _factor(call: Call, value: Value) -> float | None:
    """Return by what a call multiplies the elements of one of its inputs."""
    if call.name == "mean":
        return max(math.prod(call.output.shape), 1) / max(math.prod(value.shape), 1)
    if call.name in ("sub", *_FROM):
        is_first = bool(call.args) and call.args[0] is value
        return 1.0 if is_first == (call.name == "sub") else -1.0
    if call.name == "neg":
        return -1.0
    if call.name in ("mul", "div", "true_divide") and len(call.args) == 2:
        other = number_of(call.args[1] if call.args[0] is value else call.args[0])
        if other is None or (call.name != "mul" and (call.args[0] is not value or not other)):
            return None
        return other if call.name == "mul" else 1 / other
    return 1.0 if call.name in _SAME else None


def _copies(call: Call, value: Value) -> float:
    """Return in how many elements of a sum an element of a smaller input is."""
    if call.name not in ("add", "sub", "expand", *_FROM):
        return 1.0
    return max(math.prod(call.output.shape), 1) / max(math.prod(value.shape), 1)
