"""Arguments of early stopping: one for all monitored values, or one for each."""

from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def check_single(names: Sequence[str], *thresholds: float | None) -> None:
    """Raise if names are missing or given twice, or if thresholds are given for several names.

    Raises:
        ValueError: See above.
    """
    if not names or len({*names}) < len(names):
        raise ValueError(f"monitor has to be one name or several different names, but got {names}")
    if len(names) > 1 and any(threshold is not None for threshold in thresholds):
        raise ValueError(
            "stopping_threshold and divergence_threshold need a single monitored value, but monitor"
            f" has {len(names)}: give them to a further EarlyStopping(monitor=...,"
            " restore_best_weights=False)"
        )


def each(given: _Item | Sequence[_Item], names: Sequence[str], what: str) -> Sequence[_Item]:
    """Return one item for each name, from one item for all names or a sequence.

    Raises:
        ValueError: If the sequence has another length than ``names``.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [given] * len(names)
    if len(given) != len(names):
        raise ValueError(
            f"{what} has to be one for all of {list(names)}, or one for each, but got {given}"
        )
    return given
