"""Alternatives timed against each other in one process, so that drift hits all of them alike."""

import contextlib
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

Clock = Callable[[], float]
_FEW = 5  # rounds, for a median
_SEARCH = 1.3  # how much too small the number of calls may be before it is looked for again


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How long one callable takes against another.

    Attributes:
        ratio: Median over the rounds of our time divided by the peer's: above 1 is slower.
        spread: Interquartile range of those ratios.
        seconds: Median time of one of our calls.
        peer_seconds: Median time of one of the peer's.
    """

    ratio: float
    spread: float
    seconds: float
    peer_seconds: float


def compare(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    rounds: int = 25,
    block_seconds: float = 4e-3,
    max_seconds: float = 1.5,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Time ``ours`` and ``peer`` in blocks of equally many calls: ours, peer, peer, ours, and on.

    Args:
        ours: The callable whose time is the numerator.
        peer: The callable whose time is the denominator.
        rounds: How often the four blocks are repeated at most.
        block_seconds: Least length of a block, for clock and scheduler not to matter.
        max_seconds: After this long no further round begins, but for the first few.
        clock: Returns the time in seconds.
    """
    with _paused_collector():
        number = _number_of_calls((ours, peer), block_seconds, clock)
        timers = [lambda call=call: time_calls(call, number, clock) for call in (ours, peer)]
        times: list[list[float]] = []
        start = clock()
        while len(times) < rounds and (len(times) < _FEW or clock() - start < max_seconds):
            times.append(interleave(timers))
    ratios = [first / second for first, second in times]
    seconds, peer_seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return Comparison(statistics.median(ratios), spread_of(ratios), seconds, peer_seconds)


def interleave(measures: Sequence[Callable[[], float]]) -> list[float]:
    """Return one round of measurements, each the mean of two.

    Every measure is taken once in order and once in reverse, A B C C B A, so that a drift that is
    steady over the round adds the same to each.
    """
    there = [measure() for measure in measures]
    back = [measure() for measure in reversed(measures)]
    return [(first + last) / 2 for first, last in zip(there, reversed(back), strict=True)]


def time_calls(call: Callable[[], object], number: int, clock: Clock = time.perf_counter) -> float:
    """Return the seconds that one call takes, over ``number`` in a row."""
    start = clock()
    for _ in range(number):
        call()
    return (clock() - start) / number


def spread_of(values: Sequence[float]) -> float:
    """Return the interquartile range, 0 for a single value."""
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower


def _number_of_calls(
    calls: Sequence[Callable[[], object]], block_seconds: float, clock: Clock
) -> int:
    """Return how many calls even of the fastest fill a block; this warms them up, too."""
    number = 1
    while True:
        fastest = min(time_calls(call, number, clock) for call in calls)
        wanted = math.ceil(block_seconds / max(fastest, 1e-9))
        if wanted <= number * _SEARCH:
            return number
        number = min(wanted, number * 10)


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
    """Keep the garbage collector from running in the middle of a block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
