"""The sign with which a value enters the loss of a step."""

from collections.abc import Iterator
from typing import NamedTuple

from lightning_practices.advisor._kinds import CASTS, CLAMPS, PASSED
from lightning_practices.advisor._observation import Step
from lightning_practices.advisor._trace import Call, Value

_KEEPING = CLAMPS | {"mean", "sum", "nanmean", "nansum", "add", "stack", "cat", "sqrt", "exp"}
_KEEPING |= {"broadcast_tensors"}
_DIFFERENCES = frozenset({"sub", "__rsub__", "rsub"})
_SCALES = frozenset({"mul", "div"})
_LINEAR = _SCALES | _DIFFERENCES | {"add", "neg"}
_POSITIVE = frozenset({"exp", "square", "softplus", "sigmoid", "softmax"})
_REDUCTIONS = frozenset({"mean", "sum"})
_SHAPES = frozenset(
    {"reshape", "view", "squeeze", "unsqueeze", "flatten", "contiguous", "clone", "ravel"}
)


def sign_in_loss(step: Step, value: Value) -> int:
    """Return the sign with which a value is added to a step's loss; 0 if unknown."""
    roots = {id(root) for root in step.roots}
    waiting: list[tuple[Value, int]] = [(value, 1)]
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


class Term(NamedTuple):
    """A part of a sum.

    Attributes:
        value: What is added.
        sign: 1, or -1 where it is subtracted.
    """

    value: Value
    sign: int


def terms_of(
    value: Value, sign: int = 1, *, reductions: bool = True, products: bool = True
) -> Iterator[Term]:
    """Yield the parts of a sum of tensors, by sums, differences and factors that are numbers.

    Args:
        value: The sum.
        sign: Its sign.
        reductions: Whether means and sums over elements are looked through too.
        products: Whether both factors of a product are looked at, where both are positive. If not,
            a product with what has no gradient, such as weights of samples, is still.
    """
    value = unshaped(value)
    call = value.call
    names = _LINEAR | _REDUCTIONS if reductions else _LINEAR
    factors = []
    if call is not None and call.name in names:
        factors = [(x, _factor(call, x)) for x in call.inputs if not is_number(x)]
        if call.name in _SCALES and not products:
            trained = [pair for pair in factors if pair[0].requires_grad]
            factors = trained if len(trained) == 1 else []
    if not factors or any(factor == 0 for _, factor in factors):
        yield Term(value, sign)
        return
    for x, factor in factors:
        yield from terms_of(x, sign * factor, reductions=reductions, products=products)


def is_sum(call: Call) -> bool:
    """Return whether a call is a sum, a difference or a product with a number."""
    return call.name in _LINEAR


def unshaped(value: Value) -> Value:
    """Return a value before casts and changes of its shape that keep all elements."""
    while value.call is not None and value.call.name in _SHAPES | CASTS and value.call.inputs:
        value = value.call.inputs[0]
    return value


def is_number(value: Value) -> bool:
    """Return whether a value is a constant of one element."""
    is_constant = not (value.is_data or value.requires_grad)
    return is_constant and value.tensor is not None and value.tensor.numel() == 1


def _is_positive(value: Value) -> bool:
    """Return whether a value is positive by the functions that made it, as a variance is."""
    call = value.origin().call
    if call is None or not call.inputs:
        return False
    if call.name in ("pow", "mul", "div"):
        numbers = [x for x in call.args if isinstance(x, int | float)]
        is_even = call.name == "pow" and numbers[:1] == [2]
        return is_even or bool(numbers and numbers[0] > 0 and _is_positive(call.inputs[0]))
    return call.name in _POSITIVE


def _factor(call: Call, value: Value) -> int:
    """Return the sign of what a call does to one of its inputs; 0 if unknown."""
    if call.name in _KEEPING | PASSED:
        return 1
    if call.name == "neg":
        return -1
    if call.name in _DIFFERENCES:
        is_first = bool(call.args) and call.args[0] is value
        return 1 if is_first == (call.name == "sub") else -1
    if call.name in _SCALES and len(call.inputs) == 1:
        number = next((x for x in call.args if isinstance(x, int | float)), 0)
        return (number > 0) - (number < 0)
    if call.name in _SCALES and len(call.inputs) == 2:
        other = call.inputs[1] if call.inputs[0] is value else call.inputs[0]
        if _is_positive(other) and (call.name == "mul" or call.inputs[0] is value):
            return 1
        if is_number(other) and other.tensor is not None:
            return int(other.tensor.sign())
    return 0
