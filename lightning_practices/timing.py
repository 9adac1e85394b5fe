"""Measure several functions in turns in one process, so that drift affects all of them alike.

This module is not private, so that benchmarks can use it too.
"""

import contextlib
import dataclasses
import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

Clock = Callable[[], float]  # returns seconds
Lap = Callable[[], float]  # runs the measured code once and returns the seconds it took

FASTER = 0.97  # ours is used if it takes at most this part of torch's time, beyond the noise


@dataclasses.dataclass(frozen=True)
class Budget:
    """Number of rounds: at least ``least``, then until ``seconds`` are over, at most ``most``."""

    seconds: float
    least: int = 5
    most: int = 100


@dataclasses.dataclass(frozen=True)
class Times:
    """The times of a call, or of a step: the medians of rounds.

    Attributes:
        torch: Seconds of torch's way.
        ours: Seconds of ours.
        noise: Standard error of the ratio, from the spread of its values in the rounds.
    """

    torch: float
    ours: float
    noise: float

    @property
    def ratio(self) -> float:
        """Our time by torch's."""
        return self.ours / self.torch

    @property
    def faster(self) -> bool:
        """Whether ours is faster by 3 % at least, beyond the noise."""
        return self.ratio + self.noise <= FASTER

    def __str__(self) -> str:
        ratio = f"{self.ratio:.2f} of it, +/- {self.noise:.2f}"
        return f"{_shown(self.ours)}, torch {_shown(self.torch)} ({ratio})"


def take_turns(laps: Sequence[Lap]) -> list[float]:
    """Run one round, and return the mean of two runs for each lap.

    Every lap runs once in order and once in reverse order (A B C C B A), so that a steady drift
    during the round adds the same time to every lap.
    """
    there = [lap() for lap in laps]
    back = [lap() for lap in reversed(laps)]
    return [(first + last) / 2 for first, last in zip(there, reversed(back), strict=True)]


def interleave(
    laps: Mapping[str, Lap], budget: Budget, clock: Clock = time.perf_counter
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Run all laps in turns, round after round, with the garbage collector paused.

    Args:
        laps: The laps by name, in the order of a round. The first round is a warm-up and does not
            count.
        budget: The number of rounds.
        clock: Function that returns the time in seconds, for the budget.

    Returns:
        The seconds of each round by name of the lap, and by name the error of each lap that raised.
        A lap that raised is not run again, while the other laps continue.
    """
    samples: dict[str, list[float]] = {name: [] for name in laps}
    errors: dict[str, Exception] = {}

    def guarded(name: str) -> float:
        try:
            return math.nan if name in errors else laps[name]()
        except Exception as error:
            errors[name] = error
            return math.nan

    turns = [functools.partial(guarded, name) for name in laps]
    with _paused_collector():
        take_turns(turns)
        start = clock()
        for done in range(budget.most):
            if done >= budget.least and clock() - start >= budget.seconds:
                break
            for name, seconds in zip(laps, take_turns(turns), strict=True):
                samples[name].append(seconds)
    return {name: samples[name] for name in laps if name not in errors}, errors


def spread_of(values: Sequence[float]) -> float:
    """Return the interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
    """Disable the garbage collector, so that it doesn't run during a lap."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
