"""The point at which the averaging of weights starts."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_practices.callbacks._trainer.horizon import (
    length_of_fit,
    part_of_fit,
    warn_if_too_short,
)
from lightning_practices.callbacks._types import Interval

_SWA_START = 0.75  # of the fit, as in the paper's experiments


class Start:
    """The steps or epochs before averaging starts.

    A start that was reached stays reached: a resumed fit of another length, in which the same share
    would be another number, goes on averaging.

    Args:
        kind: ``"ema"`` or ``"swa"``.
        start: The argument of ``WeightAveraging``; ``None`` for the default of ``kind``.
        interval: The unit.
        frequency: Steps or epochs from one average to the next.
    """

    def __init__(
        self, kind: str, start: int | float | None, interval: Interval, frequency: int
    ) -> None:
        self._kind = kind
        self._given = start
        self._interval: Interval = interval
        self._frequency = frequency
        self._first = 0  # in steps or epochs
        self._is_reached = False

    def find(self, trainer: Trainer) -> None:
        """Find the start in the present length of the fit, unless it was reached before.

        Raises:
            MisconfigurationException: If the start is a share of a fit whose length isn't known
                beforehand.
        """
        if self._is_reached:
            return
        if self._given is None and self._kind == "swa":
            argument = f"WeightAveraging('swa') without start, thus start={_SWA_START},"
            share = part_of_fit(trainer, _SWA_START, self._interval, argument)
            length = length_of_fit(trainer, self._interval) or 0
            self._first = max(min(share, length - 2 * self._frequency), 0)  # at least two averages
        else:
            argument = f"WeightAveraging(start={self._given})"
            self._first = part_of_fit(trainer, self._given or 0, self._interval, argument)

    def averages_in(self, done: int) -> int:
        """Return how many averages are due in the first ``done`` steps or epochs of the fit."""
        return max(done - self._first, 0) // self._frequency

    def look(self, now: int) -> None:
        """Note whether the start is reached after ``now`` steps or epochs."""
        self._is_reached |= now >= self._first

    def warn_if_late(self, trainer: Trainer) -> None:
        """Warn if the fit ends before the first average."""
        needed = self._first + self._frequency
        text = (
            f"WeightAveraging would average for the first time after {needed}: it never will, so"
            " lower start or frequency"
        )
        length = length_of_fit(trainer, self._interval)
        warn_if_too_short(trainer, length, needed, self._interval, text)

    def state(self) -> dict[str, int] | None:
        """Return the start by its unit, for a checkpoint; ``None`` before it is reached."""
        return {self._interval: self._first} if self._is_reached else None

    def load(self, state: Mapping[str, int] | None, checkpoint: Mapping[str, Any]) -> None:
        """Load what :meth:`state` has returned. With another unit the fit is at the start now."""
        if state is not None:
            here = {"step": checkpoint["global_step"], "epoch": checkpoint["epoch"]}
            self._first = {**here, **state}[self._interval]
            self._is_reached = True
