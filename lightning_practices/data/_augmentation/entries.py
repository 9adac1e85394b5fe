"""The entries of a sample or a batch: an item of a tuple, a value of a dict, or all of it."""

from collections.abc import Mapping
from typing import Any

Entry = int | str


def item_of(whole: Any, entry: Entry) -> Any:
    """Return one entry of a sample or a batch.

    Raises:
        KeyError: If a dict doesn't have the key.
        IndexError: If a tuple or list is too short, or ``whole`` is neither.
    """
    if isinstance(whole, Mapping):
        if entry not in whole:
            keys = ", ".join(map(repr, whole))
            raise KeyError(
                f"there is no entry {entry!r} to augment: the entries are {keys}; give"
                " augment_entry=... and, for MixUp and CutMix, augment_target=..."
            )
        return whole[entry]
    if isinstance(whole, list | tuple):
        if not isinstance(entry, int) or not -len(whole) <= entry < len(whole):
            raise IndexError(
                f"there is no entry {entry!r} to augment: there are {len(whole)} entries, from 0 on"
            )
        return whole[entry]
    if entry != 0:
        raise IndexError(
            f"there is no entry {entry!r} to augment: got a {type(whole).__name__}, and neither a"
            " dict nor a tuple"
        )
    return whole


def with_item(whole: Any, entry: Entry, value: Any) -> Any:
    """Return a sample or a batch of the same type with another value in the place of ``entry``."""
    if isinstance(whole, Mapping):
        return type(whole)({**whole, entry: value})  # type: ignore[call-arg]
    if isinstance(whole, list | tuple):
        items = list(whole)
        items[int(entry)] = value
        return type(whole)(*items) if hasattr(whole, "_fields") else type(whole)(items)
    return value
