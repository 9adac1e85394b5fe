"""The divergence of a variational autoencoder with a wrong sign."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import (
    Term,
    is_sum,
    sign_in_loss,
    terms_of,
    unshaped,
)
from lightning_practices.advisor._trace import Call, Value

_POWERS = frozenset({"pow", "square", "exp"})
_STRIPPED = _POWERS | {"log", "sqrt", "mul", "div", "add"}
_TERMS = 64  # of a sum that are looked at
_SHOULD = {"variance": 1, "log variance": -1, "mean": 1}


class _Divergence(NamedTuple):
    call: Call  # the sum
    signs: dict[str, int]  # of the variance, its logarithm and the squared mean, in the loss
    variance: Value
    mean: Value | None


@rule(
    "LP241", "error",
    practice="The Kullback-Leibler term of a variational autoencoder is made smaller",
    measures="the signs with which exp(log variance), log variance and the squared mean enter the"
    " loss",
    healthy="1, -1 and 1: KL(N(mean, variance), N(0, 1)) = (mean² + variance - log variance - 1)/2",
    source="Kingma and Welling, 2014, arXiv:1312.6114, appendix B; questions on forums about a KL"
    " loss that is negative",
)  # fmt: skip
def divergence_sign(seen: Observation) -> Iterator[Evidence]:
    groups = [group for one in seen.optimizers for group in one.param_groups]
    if any(group.get("maximize", False) for group in groups):
        return
    for found in _divergences(seen):
        wrong = [name for name, sign in found.signs.items() if sign == -_SHOULD[name]]
        if not wrong:
            continue
        signs = {found.signs[name] * _SHOULD[name] for name in found.signs}
        whole = signs == {-1}
        values = [found.variance, *([found.mean] if found.mean is not None else [])]
        yield Evidence(
            f"the divergence from the prior, {found.call}, "
            + (
                "enters the loss with a minus: the fit makes it larger without an end"
                if whole
                else f"has the wrong sign for the {' and the '.join(wrong)}: the fit makes it"
                " smaller where it should grow, or the reverse"
            ),
            "loss = reconstruction + kl, with kl = 0.5 * (mean**2 + log_var.exp() - log_var"
            " - 1).sum(1).mean()",
            tuple(dict.fromkeys(name for x in values if (name := layer_of(x)))),
        )
        return


def _divergences(seen: Observation) -> Iterator[_Divergence]:
    """Yield sums that hold a variance, its logarithm and a square, the smallest sums first."""
    step = seen.step
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
            yield _Divergence(call, signs, variance.value, mean.value)


def _parts(terms: list[Term]) -> tuple[Term, Term, Term] | None:
    """Return the terms of a variance, of its logarithm, and of the square of another value."""
    powers = [term for term in terms if _is_power(term.value)]
    for variance in powers:
        base = _base(variance.value)
        logs = [
            term
            for term in terms
            if _is_logarithm(term.value, variance.value) and _base(term.value) is base
        ]
        means = [one for one in powers if _is_square(one.value) and _base(one.value) is not base]
        if logs and means and not _is_learned_ratio(base):
            return variance, logs[0], means[0]
    return None


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
    return value is _base(variance) and any(call.name == "exp" for call in _stripped(variance))


def _stripped(value: Value) -> Iterator[Call]:
    """Yield the functions of one tensor that lead to a value, the last first."""
    value = unshaped(value)
    while (call := value.call) is not None and call.name in _STRIPPED:
        if len({id(x) for x in call.inputs}) != 1:
            return
        yield call
        value = unshaped(call.inputs[0])


def _base(value: Value) -> Value:
    """Return the value of which another is an exponential, a power or a logarithm."""
    calls = list(_stripped(value))
    return unshaped(calls[-1].inputs[0] if calls else value)


def _is_learned_ratio(base: Value) -> bool:
    """Return whether a variance is relative to another one that is trained too."""
    return (
        base.call is not None
        and sum(x.requires_grad for x in base.call.inputs) > 1
        and (base.call.name in ("div", "true_divide"))
    )
