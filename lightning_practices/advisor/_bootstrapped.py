"""Targets that are a reward plus the discounted value of a later state."""

from collections.abc import Callable
from typing import NamedTuple

from lightning_practices.advisor._kinds import CLAMPS, PASSED
from lightning_practices.advisor._trace import Call, Value

_SUMS = frozenset({"add", "sub", "rsub", "__rsub__"})
_PRODUCTS = frozenset({"mul"})
_KEPT = frozenset({"detach", "minimum", "min"})
_CHOICES = frozenset({"where", "masked_fill", "__setitem__"})
_BEST = frozenset({"max", "amax"})
_DISCOUNT = (0.8, 1.0)


class NextValue(NamedTuple):
    """The value of a later state within a target.

    Attributes:
        call: The call that made it.
        is_best: Whether it is the largest of several, as in Q-learning.
        is_masked: Whether a factor or a choice that depends on the sample ends it in places.
    """

    call: Call
    is_best: bool
    is_masked: bool


def next_value(target: Value, is_live: Callable[[Value], bool]) -> NextValue | None:
    """Return the value that a reward is added to and a discount multiplies within a target.

    Args:
        target: The target.
        is_live: Says whether a value comes from the network: it has a gradient, or layers before.
    """
    waiting = [(target, False, False, False)]
    while waiting:
        value, has_reward, has_discount, is_masked = waiting.pop()
        call = value.call
        if call is None or not is_live(value):
            continue
        is_whole = has_reward and has_discount
        inputs = [x for x in call.inputs if is_live(x)]
        plain = [x for x in call.inputs if not x.requires_grad and not x.depth]
        is_chosen = is_masked or any(x.is_data for x in plain)
        if _is_best(call):
            if is_whole:
                return NextValue(call, True, is_masked or _is_masked_before(call))
        elif call.name in _SUMS:
            waiting += [(x, has_reward or bool(plain), has_discount, is_masked) for x in inputs]
        elif call.name in _PRODUCTS:
            has_discount = has_discount or _discounts(call)
            waiting += [(x, has_reward, has_discount, is_chosen) for x in inputs]
        elif call.name in PASSED | CLAMPS | _KEPT | _CHOICES:
            is_chosen = is_chosen if call.name in _CHOICES else is_masked
            waiting += [(x, has_reward, has_discount, is_chosen) for x in inputs]
        elif is_whole and call.is_layer:
            return NextValue(call, False, is_masked)
    return None


def _is_masked_before(best: Call) -> bool:
    """Return whether the values of which the best is taken are ended in places."""
    for call in best.output.before():
        if call.is_layer:
            return False
        if call.name in _CHOICES | _PRODUCTS and any(
            x.is_data and not x.depth for x in call.inputs
        ):
            return True
    return False


def _is_best(call: Call) -> bool:
    """Return whether a call chooses the largest along a dimension, or the action with it."""
    if call.name in _BEST and len(call.inputs) == 1:
        return len(call.output.shape) > 0 and call.output.shape != call.inputs[0].shape
    if call.name not in ("gather", "__getitem__", "take_along_dim"):
        return False
    makers = [x.maker() for x in call.inputs if not x.requires_grad and x.depth]
    return any(one is not None and one.name in ("argmax", "max") for one in makers)


def _discounts(call: Call) -> bool:
    """Return whether a product has a discount as a factor, alone or times a mask."""
    numbers = [x for x in call.args if isinstance(x, int | float)]
    for x in call.inputs:
        if x.requires_grad or x.depth:
            continue
        if x.tensor is not None and x.tensor.numel() == 1:
            numbers.append(float(x.tensor))
        maker = x.maker()
        if maker is not None and maker.name in _PRODUCTS and _discounts(maker):
            return True
    low, high = _DISCOUNT
    return any(low <= x < high for x in numbers)
