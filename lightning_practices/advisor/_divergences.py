"""Divergences between a normal distribution and its prior, as in variational autoencoders."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from lightning_practices.advisor._observation import Step
from lightning_practices.advisor._signs import Term, is_sum, sign_in_loss, terms_of, unshaped
from lightning_practices.advisor._trace import Call, Value

_TERMS = 64  # of a sum that are looked at
_POWERS = frozenset({"pow", "square", "exp"})
_STRIPPED = _POWERS | {"log", "sqrt", "mul", "div", "add"}


class Divergence(NamedTuple):
    """A divergence from the prior, up to signs.

    Attributes:
        call: The sum that it is.
        signs: The signs with which the variance, its logarithm and, where it is in the same sum,
            the squared mean enter the loss.
        variance: The variance.
        mean: The square of the mean.
    """

    call: Call
    signs: dict[str, int]
    variance: Value
    mean: Value


def divergences_of(step: Step) -> Iterator[Divergence]:
    """Yield sums that hold a variance, its logarithm and a square, the smallest sums first."""
    sums = [call for call in step.after_layers if is_sum(call)]
    for inner in (True, False):
        for call in sums:
            if inner and any(is_sum(user) for user in step.users(call.output)):
                continue
            terms = [
                term
                for term in islice(terms_of(call.output, reductions=not inner), _TERMS)
                if term.value.requires_grad and term.value.is_data
            ]
            if (parts := _parts(terms)) is None:
                continue
            variance, log, mean = parts
            if (sign := sign_in_loss(step, call.output)) == 0:
                continue
            signs = {"variance": sign * variance.sign, "log variance": sign * log.sign}
            if inner:
                signs["mean"] = sign * mean.sign
            yield Divergence(call, signs, variance.value, mean.value)


def _parts(terms: list[Term]) -> tuple[Term, Term, Term] | None:
    """Return the terms of a variance, of its logarithm, and of the square of another value."""
    powers = [term for term in terms if _is_power(term.value)]
    for variance in powers:
        base = base_of(variance.value)
        logs = [
            term
            for term in terms
            if _is_logarithm(term.value, variance.value) and base_of(term.value) is base
        ]
        squares = [one for one in powers if _is_square(one.value)]
        means = [one for one in squares if _is_mean(base_of(one.value)) and
                 base_of(one.value) is not base]  # fmt: skip
        if logs and means and not _is_learned_ratio(base):
            return variance, logs[0], means[0]
    return None


def _is_mean(base: Value) -> bool:
    """Return whether a value isn't the error of a prediction, as in a likelihood of targets."""
    return base.call is None or not is_error(base.call)


def is_error(call: Call) -> bool:
    """Return whether a call is the difference between an output and a target of the batch."""
    if call.name not in ("sub", "rsub", "__rsub__") or len(call.inputs) != 2:
        return False
    target, output = sorted(call.inputs, key=lambda value: value.requires_grad)
    is_target = target.is_data and not target.requires_grad and not target.depth
    return is_target and output.requires_grad and bool(output.depth)


def _is_power(value: Value) -> bool:
    return value.call is not None and (value.call.name in _POWERS or _is_square(value))


def _is_square(value: Value) -> bool:
    call = value.call
    if call is None:
        return False
    if call.name == "mul":
        return len(call.inputs) == 2 and call.inputs[0] is call.inputs[1]
    return call.name == "square" or (call.name == "pow" and call.get(1, "exponent") == 2)


def _is_logarithm(value: Value, variance: Value) -> bool:
    """Return whether a value is a logarithm, or the argument of the exponential in ``variance``."""
    if value.call is not None and value.call.name == "log":
        return True
    return value is base_of(variance) and any(call.name == "exp" for call in stripped(variance))


def stripped(value: Value) -> Iterator[Call]:
    """Yield the functions of one tensor that lead to a value, the last first."""
    value = unshaped(value)
    while (call := value.call) is not None and call.name in _STRIPPED:
        if len({id(x) for x in call.inputs}) != 1:
            return
        yield call
        value = unshaped(call.inputs[0])


def base_of(value: Value) -> Value:
    """Return the value of which another is an exponential, a power or a logarithm."""
    calls = list(stripped(value))
    return unshaped(calls[-1].inputs[0] if calls else value)


def _is_learned_ratio(base: Value) -> bool:
    """Return whether a variance is relative to another one that is trained too."""
    return (
        base.call is not None
        and sum(x.requires_grad for x in base.call.inputs) > 1
        and (base.call.name in ("div", "true_divide"))
    )
