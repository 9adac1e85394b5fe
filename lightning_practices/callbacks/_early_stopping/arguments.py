"""Arguments of early stopping: one for all monitored values, or one for each."""

from collections.abc import Sequence
from typing import TypeVar, get_args

from lightning_practices._arguments import check_choice, check_flag, check_number, shown
from lightning_practices.callbacks._types import Mode

_Item = TypeVar("_Item")


def check_single(
    names: Sequence[str], stopping_threshold: float | None, divergence_threshold: float | None
) -> None:
    """Raise if names are missing or given twice, or if thresholds are given for several names.

    Raises:
        TypeError: If a threshold is not a number.
        ValueError: See above.
    """
    thresholds = {
        "stopping_threshold": stopping_threshold,
        "divergence_threshold": divergence_threshold,
    }
    for name, threshold in thresholds.items():
        if threshold is not None:
            check_number(name, threshold, finite=False)
    if not names or len({*names}) < len(names):
        raise ValueError(
            f"monitor has to be one name or several different names, but got {shown(names)}"
        )
    if len(names) > 1 and any(one is not None for one in thresholds.values()):
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
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        return [given] * len(names)
    if len(given) != len(names):
        raise ValueError(
            f"{what} has to be one for all of {list(names)}, or one for each, but got"
            f" {shown(given)}"
        )
    return given


def check_modes(mode: Mode | Sequence[Mode], names: Sequence[str]) -> list[Mode]:
    """Return the mode of each name.

    Raises:
        TypeError: If a mode is not a string.
        ValueError: If a mode is unknown, or there are more or fewer than ``names``.
    """
    modes: Sequence[Mode] = each(mode, names, "mode")
    return [check_choice("mode", one, get_args(Mode)) for one in modes]


def check_flags(check_on_train_epoch_end: bool | None, **flags: bool) -> None:
    """Raise ``TypeError`` unless each argument is ``True`` or ``False``; the first may be None."""
    if check_on_train_epoch_end is not None:
        check_flag("check_on_train_epoch_end", check_on_train_epoch_end)
    for name, flag in flags.items():
        check_flag(name, flag)
