"""Checks of arguments, whose errors say the name, what is expected and what was got.

Each function returns the argument in its plain type: a number of NumPy, or a tensor of one integer,
becomes an ``int`` or ``float``, which checkpoints and YAML files can hold. ``True`` and ``False``
are not numbers. The error quotes the argument by :func:`shown`, which cuts long values.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Real
from operator import index
from os import PathLike
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

from torch import Tensor, nn

_Name = TypeVar("_Name", bound=str)
_Kind = TypeVar("_Kind")

_MOST_CHARACTERS = 300  # of a value in an error
_SHORTENED = Repr()
_SHORTENED.maxlevel = 3
_SHORTENED.maxstring = _SHORTENED.maxother = 200  # enough for most paths
_SHORTENED.maxtuple = _SHORTENED.maxlist = _SHORTENED.maxdict = 10
_SHORTENED.maxset = _SHORTENED.maxfrozenset = _SHORTENED.maxdeque = _SHORTENED.maxarray = 10


def shown(value: object) -> str:
    """Return a value as an error quotes it: its ``repr``, cut to a few hundred characters.

    The cost is bounded too: a nested list is read to the third level only, so a list whose items
    refer to each other many times, as YAML aliases can, is not written out.
    """
    try:
        text = _SHORTENED.repr(value)
    except ValueError:  # Python refuses to write out an int of more than 4300 digits
        text = f"an {type(value).__name__} too long to show"
    return cut(text)


def cut(text: str) -> str:
    """Return the first few hundred characters of a text."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def check_whole(name: str, value: Any, least: int | None) -> int:
    """Return a whole number, from ``least`` on if that is given.

    Raises:
        TypeError: If ``value`` is not a whole number: ``operator.index`` refuses it.
        ValueError: If it is below ``least``, or needs more than 64 bits: a loop of so many steps
            never ends, and neither a tensor nor a float can hold the number.
    """
    limit = "" if least is None else f" from {least} on"
    message = f"{name} has to be a whole number{limit}, but got {shown(value)}"
    try:
        number = index(value)
    except (TypeError, RuntimeError):  # a tensor of several elements raises RuntimeError
        raise TypeError(message) from None
    if isinstance(value, bool):
        raise TypeError(message)
    if least is not None and number < least:
        raise ValueError(message)
    if not -(2**63) <= number < 2**64:  # a seed may be any integer of 64 bits
        raise ValueError(f"{message}: it needs more than 64 bits")
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
    if ge is not None and le is not None:
        expected = f"a number between {ge:g} and {le:g}"
    else:
        bounds = {"at least": ge, "above": gt, "at most": le, "below": lt}
        given = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
        expected = ", ".join(["a finite number" if finite else "a number", " and ".join(given)])
    message = f"{name} has to be {expected.removesuffix(', ')}, but got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    try:
        as_float = float(value)
    except OverflowError:  # a larger int than the largest float
        raise ValueError(message) from None
    is_within = (
        (ge is None or as_float >= ge)
        and (gt is None or as_float > gt)
        and (le is None or as_float <= le)
        and (lt is None or as_float < lt)
    )
    if math.isnan(as_float) or (finite and math.isinf(as_float)) or not is_within:
        raise ValueError(message)
    return as_float


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """Return the sizes of dimensions, at least one, as a tuple; a number is one dimension.

    Raises:
        TypeError: If ``value`` is neither a whole number nor a sequence of whole numbers.
        ValueError: If there is no size, or one is negative.
    """
    message = f"{name} has to be a size from 0 on, or a list of sizes, but got {shown(value)}"
    is_listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    try:
        sizes = tuple(check_whole(name, size, 0) for size in (value if is_listed else [value]))
    except (TypeError, ValueError) as error:
        raise type(error)(message) from None
    if not sizes:
        raise ValueError(message)
    return sizes


def check_heads(heads_name: str, heads: Any, width_name: str, width: Any) -> None:
    """Raise unless the number of attention heads divides the number of features.

    Raises:
        TypeError: If one of the two is not a whole number.
        ValueError: If one is below 1, or the heads do not divide the features.
    """
    heads, width = check_whole(heads_name, heads, 1), check_whole(width_name, width, 1)
    if width % heads:
        raise ValueError(
            f"{heads_name} has to divide {width_name}, but got {heads_name}={shown(heads)} and"
            f" {width_name}={shown(width)}"
        )


def check_count_or_share(
    name: str, value: Any, units: str, *, least: int, gt: float | None = None, lt: float = math.inf
) -> int | float:
    """Return a point in a fit: an int is a number of steps or epochs, a float a share of the fit.

    Args:
        name: Name of the argument.
        value: The argument.
        units: What an int counts, such as ``"steps"``.
        least: Least int.
        gt: Share that a float has to be above. Default: a share of 0 is allowed.
        lt: Share that a float has to be below. Default: a share of 1 is allowed.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is out of range.
    """
    above = "from 0" if gt is None else f"above {gt:g} and"
    below = "to below 1" if lt <= 1 else "up to 1.0"
    message = (
        f"{name} has to be a number of {units}, an int from {least} on, or a share of the fit, a"
        f" float {above} {below}, but got {shown(value)}"
    )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    try:
        return check_whole(name, value, least)
    except ValueError:
        raise ValueError(message) from None
    except TypeError:  # a float
        share = float(value)
    if not 0.0 <= share <= 1.0 or share >= lt or (gt is not None and share <= gt):
        raise ValueError(message)
    return share


def check_flag(name: str, value: Any) -> bool:
    """Return ``True`` or ``False``.

    Raises:
        TypeError: If ``value`` is neither: the text ``"false"`` would count as true.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} has to be True or False, but got {shown(value)}")
    return value


def check_choice(name: str, value: _Name, known: Iterable[_Name], instead: str = "") -> _Name:
    """Return one of the ``known`` names.

    Args:
        name: Name of the argument.
        value: The argument.
        known: The names to choose from.
        instead: What the argument may be instead of a name, for the error.

    Raises:
        TypeError: If ``value`` is not a string.
        ValueError: If ``value`` is none of the names. The error suggests the nearest.
    """
    names = list(known)
    is_text = isinstance(value, str)
    if is_text and value in names:
        return value
    *others, last = [*map(repr, names), *([instead] if instead else [])]
    expected = f"{', '.join(others)} or {last}" if others else last
    near = get_close_matches(value.lower(), names, n=1) if is_text else []
    hint = f": did you mean {near[0]!r}?" if near else ""
    message = f"{name} has to be {expected}, but got {shown(value)}{hint}"
    raise ValueError(message) if is_text else TypeError(message)


def check_name(name: str, value: Any) -> str:
    """Return a name, which is a string that is not empty.

    Raises:
        TypeError: If ``value`` is not a string.
        ValueError: If it is empty.
    """
    message = f"{name} has to be a name, but got {shown(value)}"
    if not isinstance(value, str):
        raise TypeError(message)
    if not value.strip():
        raise ValueError(message)
    return value


def check_names(name: str, value: Sequence[str], *, least: int = 0) -> tuple[str, ...]:
    """Return a sequence of names as a tuple.

    Raises:
        TypeError: If ``value`` is a single string, or no sequence of strings.
        ValueError: If it has fewer than ``least`` names, or one is empty.
    """
    is_listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not is_listed or not all(isinstance(entry, str) for entry in value):
        example = f", as in {shown([value])}" if isinstance(value, str) else ""
        raise TypeError(f"{name} has to be a list of names{example}, but got {shown(value)}")
    if len(value) < least or not all(entry.strip() for entry in value):
        raise ValueError(f"{name} has to list at least {least} names, but got {shown(value)}")
    return tuple(value)


def check_path(name: str, value: Any, what: str) -> Path:
    """Return the path of a ``what``: a file or a folder.

    Raises:
        TypeError: If ``value`` is neither a string nor a path.
        ValueError: If it is empty, or no path can have its characters.
    """
    message = f"{name} has to be the path of a {what}, but got {shown(value)}"
    if not isinstance(value, str | PathLike):
        raise TypeError(message)
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(message)
    if not path.strip() or "\0" in path:
        raise ValueError(message)
    return Path(path)


def check_pattern(name: str, value: str) -> re.Pattern[str]:
    """Return a regular expression, compiled.

    Raises:
        TypeError: If ``value`` is not a string.
        ValueError: If it is not a regular expression.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} has to be a regular expression, but got {shown(value)}")
    try:
        return re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}={shown(value)} is no regular expression: {error}") from None


def check_blocks_by(name: str, value: Any) -> None:
    """Raise unless a value may be the ``by`` of :func:`~lightning_practices.surgery.blocks`.

    Raises:
        TypeError: If it is neither a string nor a list of names and lists of names.
        ValueError: If it is a string, but no regular expression; or an empty list.
    """
    if isinstance(value, str) and value:
        check_pattern(name, value)
        return
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise TypeError(
            f"{name} has to be a regular expression or a list of names, but got {shown(value)}"
        )
    if not value:
        raise ValueError(f"{name} has to list at least one name, but got {shown(value)}")
    for entry in value:
        names = [entry] if isinstance(entry, str) else entry
        is_listed = isinstance(names, Sequence) and len(names) > 0
        if not is_listed or not all(isinstance(each, str) for each in names):
            raise TypeError(
                f"each of {name} has to be a name or a list of names, but got {shown(entry)}"
            )


def check_layers(
    name: str, layers: type[nn.Module] | str | Sequence[type[nn.Module] | str] | None
) -> tuple[type[nn.Module] | str, ...]:
    """Return the classes and names of layers as a tuple; ``("*",)`` for ``None``.

    Raises:
        TypeError: If an entry is neither a class of modules nor a name.
        ValueError: If there is no entry.
    """
    given: Any = "*" if layers is None else layers
    is_listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    entries = tuple(given) if is_listed else (given,)
    for entry in entries:
        is_class = isinstance(entry, type) and issubclass(entry, nn.Module)
        if not is_class and (not isinstance(entry, str) or not entry):
            raise TypeError(
                f"{name} has to be classes of layers or names, one or several, but got"
                f" {shown(entry)}"
            )
    if not entries:
        raise ValueError(f"{name} has to hold at least one class or name, but got {shown(layers)}")
    return entries


def check_instance(
    name: str, value: Any, kinds: type[_Kind] | tuple[type[Any], ...], expected: str
) -> _Kind:
    """Return an object of one of several classes.

    Args:
        name: Name of the argument.
        value: The argument.
        kinds: The classes.
        expected: What the argument has to be, for the error.

    Raises:
        TypeError: If ``value`` is of another class.
    """
    if not isinstance(value, kinds):
        got = f"the class {value.__qualname__}" if isinstance(value, type) else shown(value)
        raise TypeError(f"{name} has to be {expected}, but got {got}{_of_class(value)}")
    made: _Kind = value
    return made


def check_callable(name: str, value: Any, expected: str = "a function") -> Any:
    """Return a function, or another object that can be called.

    Raises:
        TypeError: If ``value`` can't be called.
    """
    if not callable(value):
        raise TypeError(f"{name} has to be {expected}, but got {shown(value)}{_of_class(value)}")
    return value


def check_iterable(name: str, value: Any, expected: str) -> None:
    """Raise unless a value can be iterated over; its items are not read.

    Raises:
        TypeError: If ``value`` can't be iterated over, as a tensor of one number, or is a string.
    """
    is_open = isinstance(value, Iterable) or hasattr(type(value), "__getitem__")
    is_one = isinstance(value, str | bytes) or (isinstance(value, Tensor) and value.dim() == 0)
    if is_one or not is_open:
        raise TypeError(f"{name} has to be {expected}, but got {shown(value)}{_of_class(value)}")


def check_listed(name: str, value: Any, expected: str) -> list[Any]:
    """Return the items of an iterable.

    Raises:
        TypeError: If ``value`` can't be iterated over, or is a string or a tensor.
    """
    if isinstance(value, Tensor):
        raise TypeError(f"{name} has to be {expected}, but got {shown(value)}{_of_class(value)}")
    check_iterable(name, value, expected)
    return list(value)


def _of_class(value: object) -> str:
    """Return the class of a value whose ``repr`` may not show it."""
    return "" if value is None or isinstance(value, type) else f", of class {type(value).__name__}"
