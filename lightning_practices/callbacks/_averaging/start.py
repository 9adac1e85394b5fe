"""The point at which the averaging of weights starts."""

from lightning.pytorch import Trainer

from lightning_practices.callbacks._trainer.horizon import (
    length_of_fit,
    part_of_fit,
    warn_if_too_short,
)
from lightning_practices.callbacks._types import Interval

_SWA_START = 0.75  # of the fit, as in the paper's experiments


def first_start(
    trainer: Trainer, kind: str, start: int | float | None, interval: Interval, frequency: int
) -> int:
    """Return the steps or epochs before averaging starts.

    Args:
        trainer: The Trainer of the fit.
        kind: ``"ema"`` or ``"swa"``.
        start: The argument of ``WeightAveraging``; ``None`` for the default of ``kind``.
        interval: The unit.
        frequency: Steps or epochs from one average to the next.

    Raises:
        MisconfigurationException: If the start is a share of a fit whose length isn't known
            beforehand.
    """
    length = length_of_fit(trainer, interval)
    if start is None and kind == "swa":
        argument = f"WeightAveraging('swa') without start, thus start={_SWA_START},"
        share = part_of_fit(trainer, _SWA_START, interval, argument)
        first = max(min(share, (length or 0) - 2 * frequency), 0)  # at least two averages
    else:
        first = part_of_fit(trainer, start or 0, interval, f"WeightAveraging(start={start})")
    return first


def warn_of_late_start(trainer: Trainer, first: int, interval: Interval, frequency: int) -> None:
    """Warn if the fit ends before the first average."""
    needed = first + frequency
    text = (
        f"WeightAveraging would average for the first time after {needed}: it never will, so lower"
        " start or frequency"
    )
    warn_if_too_short(trainer, length_of_fit(trainer, interval), needed, f"{interval}s", text)
