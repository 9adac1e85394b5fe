"""The entries of a sample or a batch: an item of a tuple, a value of a dict, or all of it.

The items of a named tuple are entries by position and by the name of their field.
"""

from collections.abc import Mapping
from typing import Any, cast

from lightning_practices._arguments import check_name, check_whole, shown

Entry = int | str
"""An entry of a batch: a position in a tuple, or a key of a dict or named tuple."""


def check_entry(entry: Any, name: str = "entry") -> Entry:
    """Return an entry of a batch: a position in a tuple, or a key of a dict or named tuple.

    Args:
        entry: The argument.
        name: Name of the argument.

    Raises:
        TypeError: If it is neither a whole number nor a string.
        ValueError: If it is an empty string.

    Example:
        >>> from lightning_practices.data import check_entry
        >>> check_entry("image"), check_entry(1)
        ('image', 1)
        >>> check_entry(1.5)
        Traceback (most recent call last):
            ...
        TypeError: entry has to be a position in a tuple or a key of a dict, but got 1.5
    """
    if isinstance(entry, bool) or not isinstance(entry, int | str):
        raise TypeError(
            f"{name} has to be a position in a tuple or a key of a dict, but got {shown(entry)}"
        )
    return check_name(name, entry) if isinstance(entry, str) else check_whole(name, entry, None)


def item_of(whole: Any, entry: Entry, hint: str = "") -> Any:
    """Return one entry of a sample or a batch.

    Args:
        whole: A dict, a tuple or list, or anything else, which is its own entry 0.
        entry: The key or the position.
        hint: What to do, for the error.

    Raises:
        KeyError: If a dict doesn't have the key.
        IndexError: If a tuple or list is too short, or ``whole`` is neither.
    """
    if isinstance(whole, Mapping):
        if entry not in whole:
            keys = ", ".join(map(repr, whole))
            raise KeyError(f"there is no entry {entry!r}: the entries are {keys}{hint}")
        return whole[entry]
    if isinstance(whole, list | tuple):
        place = _place(whole, entry)
        if place is None:
            raise IndexError(
                f"there is no entry {entry!r}: there are {len(whole)}, from 0 on{hint}"
            )
        return whole[place]
    if entry != 0:
        raise IndexError(
            f"there is no entry {entry!r}: got a {type(whole).__name__}, and neither a dict nor a"
            f" tuple{hint}"
        )
    return whole


def has_item(whole: Any, entry: Entry) -> bool:
    """Say whether a sample or a batch has an entry."""
    if isinstance(whole, Mapping):
        return entry in whole
    if isinstance(whole, list | tuple):
        return _place(whole, entry) is not None
    return entry == 0


def with_item(whole: Any, entry: Entry, value: Any) -> Any:
    """Return a sample or a batch of the same type with another value in the place of ``entry``."""
    if isinstance(whole, Mapping):
        return type(whole)({**whole, entry: value})  # type: ignore[call-arg]
    if isinstance(whole, list | tuple):
        items = list(whole)
        items[cast(int, _place(whole, entry))] = value
        return type(whole)(*items) if hasattr(whole, "_fields") else type(whole)(items)
    return value


def _place(whole: list[Any] | tuple[Any, ...], entry: Entry) -> int | None:
    """Return the position of an entry; ``None`` if there is no such entry."""
    fields: tuple[str, ...] = getattr(whole, "_fields", ())
    if entry in fields:
        return fields.index(str(entry))
    is_there = isinstance(entry, int) and -len(whole) <= entry < len(whole)
    return int(entry) if is_there else None
