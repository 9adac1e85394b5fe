"""Likelihoods with a predicted scale: the signs of the scale and of its logarithm."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from lightning_practices.advisor._divergences import is_error
from lightning_practices.advisor._kinds import CLAMPS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import is_number, terms_of, unshaped
from lightning_practices.advisor._trace import LOSSES, Call, Value

_TERMS = 64  # of a sum that are looked at
_RISING = CLAMPS | {"exp", "exp2", "expm1", "log", "log1p", "sqrt", "softplus", "sigmoid", "square"}
_FALLING = frozenset({"reciprocal", "rsqrt", "neg"})
_FROM = frozenset({"rsub", "__rsub__"})
_OVER = frozenset({"__rdiv__", "__rtruediv__"})
_SUMS = frozenset({"sum", "mean"})


@rule(
    "LP281", "error",
    practice="A predicted variance divides the error, and its logarithm is added",
    measures="whether the factor of an error and the logarithm beside it rise with the same output",
    healthy="one rises and the other falls: 0.5 * (log_var + error**2 * exp(-log_var))",
    source="Kendall and Gal, 2017, arXiv:1703.04977, equation 8; Kendall et al., 2018,"
    " arXiv:1705.07115; questions on forums about a regression whose loss falls without an end",
)  # fmt: skip
def variance_and_logarithm(seen: Observation) -> Iterator[Evidence]:
    groups = [group for one in seen.optimizers for group in one.param_groups]
    if any(group.get("maximize", False) for group in groups):
        return
    for step in seen.steps:
        for root in step.roots:
            terms = islice(terms_of(root, products=False), _TERMS)
            parts = [(term, _scales(term.value)) for term in terms if term.value.requires_grad]
            for term, scales in parts:
                for scale in scales if term.sign > 0 else ():
                    signs = {
                        other.sign * log.direction
                        for other, _ in parts
                        if other is not term
                        and (log := _monotone(other.value)).key == scale.key
                        and _is_logarithm(other.value, log)
                    }
                    if signs == {scale.direction} and term.value.call is not None:
                        yield _evidence(term.value.call, scale)
                        return


class _Monotone(NamedTuple):
    """What a value is a monotone function of.

    Attributes:
        base: The value within.
        direction: 1 if the function rises, -1 if it falls.
        names: The functions, the last first.
        parts: The indices by which a part of the base is taken.
    """

    base: Value
    direction: int
    names: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """A key of what is taken, which is equal however often it is taken."""
        return id(self.base), self.parts


def _evidence(call: Call, scale: _Monotone) -> Evidence:
    which = "larger" if scale.direction > 0 else "smaller"
    end = "minus infinity" if scale.direction > 0 else "infinity"
    name = layer_of(scale.base)
    return Evidence(
        f"{call} makes the error's weight {which} where the predicted log variance"
        f"{f' of {name}' if name else ''} grows, and the logarithm beside it does the same to the"
        f" loss: the output runs to {end}, where both are least, and errors no longer count",
        "loss = 0.5 * (log_var + (y - mean) ** 2 * torch.exp(-log_var)), or"
        " torch.nn.functional.gaussian_nll_loss(mean, y, variance)",
        (name,) if name else (),
    )


def _is_logarithm(value: Value, log: _Monotone) -> bool:
    """Return whether a term is an output itself, or the logarithm of a function of it."""
    linear = CLAMPS | {"mul", "div", "add", "sub", "neg", *_FROM}
    return bool(log.names[:1] and log.names[0] in ("log", "log1p")) or set(log.names) <= linear


def _scales(value: Value) -> list[_Monotone]:
    """Return the trained factors of an error, each by the direction in which it changes it."""
    factors = list(_factors(value, 1))
    if not any(_is_error(x) for x, _ in factors):
        return []
    found = []
    for x, power in factors:
        one = _monotone(x)
        is_trained = one.base.requires_grad and one.names and not _is_error(x)
        if is_trained:
            found.append(one._replace(direction=one.direction * power))
    return found


def _factors(value: Value, power: int) -> Iterator[tuple[Value, int]]:
    """Yield the factors of a product of tensors with the signs of their exponents."""
    value = unshaped(value)
    call = value.call
    if call is None or _is_error(value):
        yield value, power
    elif call.name in ("mul", "div"):
        tensors = [x for x in call.inputs if not is_number(x)]
        for place, x in enumerate(tensors):
            is_below = call.name == "div" and place == 1
            yield from _factors(x, -power if is_below else power)
    elif call.name in _SUMS | {"square", "abs"} | CLAMPS and len(call.inputs) == 1:
        yield from _factors(call.inputs[0], power)
    elif call.name == "pow" and isinstance(number := call.get(1, "exponent"), int | float):
        yield from _factors(call.inputs[0], power if number > 0 else -power)
    else:
        yield value, power


def _is_error(value: Value) -> bool:
    call = value.origin().call
    if call is not None and call.name in ("stack", "cat"):
        return any(map(_is_error, call.inputs))
    return call is not None and (is_error(call) or call.name in LOSSES)


def _monotone(value: Value) -> _Monotone:
    """Return the value of which another is a rising or falling function of one tensor."""
    direction, names, parts = 1, list[str](), list[str]()
    value = unshaped(value)
    while (call := value.call) is not None and len({id(x) for x in call.inputs}) == 1:
        number = next((x for x in call.args if isinstance(x, int | float)), None)
        if call.name == "__getitem__":
            parts.append(repr(call.args[1:]))
            value = unshaped(call.inputs[0])
            continue
        if call.name in _FALLING | _FROM | _OVER:
            direction = -direction
        elif call.name in ("mul", "div", "pow") and number is not None:
            direction = direction if number > 0 else -direction
        elif call.name not in _RISING and not (call.name in ("add", "sub") and number is not None):
            break
        names.append(call.name)
        value = unshaped(call.inputs[0])
    return _Monotone(value, direction, tuple(names), tuple(parts))
