"""Checks of arguments, whose errors say the name, what is expected and what was got.

Each function returns the argument in its plain type: a number of NumPy, or a tensor of one integer,
becomes an ``int`` or ``float``, which checkpoints and YAML files can hold. ``True`` and ``False``
are not numbers.
"""

import inspect
import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Real
from operator import index
from typing import Any, TypeVar

_Name = TypeVar("_Name", bound=str)


def check_whole(name: str, value: Any, least: int) -> int:
    """Return a whole number from ``least`` on.

    Raises:
        TypeError: If ``value`` is not a whole number: ``operator.index`` refuses it.
        ValueError: If it is below ``least``.
    """
    message = f"{name} has to be a whole number from {least} on, but got {value!r}"
    try:
        number = index(value)
    except TypeError:
        raise TypeError(message) from None
    if isinstance(value, bool):
        raise TypeError(message)
    if number < least:
        raise ValueError(message)
    return number


def check_number(
    name: str,
    value: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    finite: bool = True,
) -> float:
    """Return a number within bounds.

    Args:
        name: Name of the argument.
        value: The argument.
        ge: Least value.
        gt: Value that it has to be above.
        le: Greatest value.
        lt: Value that it has to be below.
        finite: Whether infinity is refused. Nan always is.

    Raises:
        TypeError: If ``value`` is not a real number of Python or NumPy.
        ValueError: If it is out of bounds, nan, or infinite.
    """
    bounds = {"at least": ge, "above": gt, "at most": le, "below": lt}
    given = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
    expected = ", ".join(["a finite number" if finite else "a number", " and ".join(given)])
    message = f"{name} has to be {expected.removesuffix(', ')}, but got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    as_float = float(value)
    is_within = (
        (ge is None or as_float >= ge)
        and (gt is None or as_float > gt)
        and (le is None or as_float <= le)
        and (lt is None or as_float < lt)
    )
    if math.isnan(as_float) or (finite and math.isinf(as_float)) or not is_within:
        raise ValueError(message)
    return as_float


def check_choice(name: str, value: _Name, known: Iterable[_Name], instead: str = "") -> _Name:
    """Return one of the ``known`` names.

    Args:
        name: Name of the argument.
        value: The argument.
        known: The names to choose from.
        instead: What the argument may be instead of a name, for the error.

    Raises:
        ValueError: If ``value`` is none of them. The error suggests the nearest.
    """
    names = list(known)
    if value in names:
        return value
    *others, last = [*map(repr, names), *([instead] if instead else [])]
    near = get_close_matches(value.lower(), names, n=1) if isinstance(value, str) else []
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} has to be {', '.join(others)} or {last}, but got {value!r}{hint}")


def check_names(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Return a sequence of names as a tuple.

    Raises:
        TypeError: If ``value`` is a single string, or no sequence of strings.
    """
    is_listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_listed or not all(isinstance(entry, str) for entry in value):
        example = f", as in {[value]!r}" if isinstance(value, str) else ""
        raise TypeError(f"{name} has to be a list of names{example}, but got {value!r}")
    return tuple(value)


def as_call(made: object) -> str:
    """Return the call that makes an object whose attributes have the names of its arguments.

    Arguments that equal their defaults are left out, except for the first.
    """
    first, *others = list(inspect.signature(type(made)).parameters.values())
    given = getattr(made, first.name)
    shown = [getattr(given, "__qualname__", repr(given))]
    for parameter in others:
        value = getattr(made, parameter.name)
        if parameter.kind is parameter.VAR_KEYWORD:
            shown += [f"{key}={option!r}" for key, option in value.items()]
        elif value != parameter.default:
            shown.append(f"{parameter.name}={value!r}")
    return f"{type(made).__name__}({', '.join(shown)})"
