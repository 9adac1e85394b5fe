"""Taking turns: several measures in one process, so that drift of the machine hits all alike."""

import contextlib
import dataclasses
import functools
import gc
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

Clock = Callable[[], float]  # returns seconds
Lap = Callable[[], float]  # runs the measured code once and returns the seconds it took


@dataclasses.dataclass(frozen=True)
class Budget:
    """How often laps are run: ``least`` rounds, then until ``seconds`` or ``most`` rounds."""

    seconds: float
    least: int = 5
    most: int = 100


def take_turns(laps: Sequence[Lap]) -> list[float]:
    """Run one round, and return the mean of two for each lap.

    Every lap is run once in order and once in reverse, A B C C B A, so that a drift that is steady
    over the round adds the same to each.
    """
    there = [lap() for lap in laps]
    back = [lap() for lap in reversed(laps)]
    return [(first + last) / 2 for first, last in zip(there, reversed(back), strict=True)]


def interleave(
    laps: Mapping[str, Lap], budget: Budget, clock: Clock = time.perf_counter
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Run all laps in turns, round after round, with the garbage collector paused.

    Args:
        laps: By name, in the order of a round. The first round is a warm-up and does not count.
        budget: When to stop.
        clock: Tells how much of the budget is used.

    Returns:
        The seconds of each round by name, and the error of each lap that raised. Such a lap is not
        run again, and the other laps go on.
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
    """Return the interquartile range, 0 for a single value."""
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
    """Keep the garbage collector from running in the middle of a lap."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeoutError` in code that takes longer, as soon as it is back in Python.

    Without effect outside the main thread, and on systems without ``SIGALRM``.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
