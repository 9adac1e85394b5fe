"""Timers of calls: graph replay or events with a cold cache on a GPU, wall time on a CPU.

``triton.testing`` has both GPU methods, but it can't empty the cache within a graph, nor time
several functions in turns. So both are implemented here with torch's events and graphs.
"""

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from benchmarks.rows import first_line
from lightning_practices.timing import Clock, Lap

Call = Callable[[], object]

_HOST_ROUNDS = 5
_HOST_CALLS = 20  # so few that the GPU's queue never fills, which would make the host wait
_SCRUBS_PER_CACHE = 4  # size of the buffer that overwrites the cache, as a multiple of the cache
_SEARCH = 1.3  # factor by which a block may be too short without a new search for its length


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A series of calls that is ready to be timed.

    Attributes:
        timer: How the calls are timed: ``"graph"``, ``"events"`` or ``"cpu"``.
        lap: Function that makes all calls once and returns the seconds per call.
        note: Why the calls are not captured as a graph, although this was requested.
    """

    timer: str
    lap: Lap
    note: str | None = None


class Timer(Protocol):
    """Interface of the timers of a device."""

    device: torch.device

    def context(self) -> AbstractContextManager[object]:
        """Return the context in which calls and their preceding forward passes must be made."""

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up ``calls`` (the same call on different tensors) and prepare them for timing."""

    def host_seconds(self, call: Call) -> float | None:
        """Return the host's seconds for a call, without waiting for the device."""

    def peak_bytes(self, call: Call) -> int | None:
        """Return the peak of the bytes that a call allocates, including its result."""

    def synchronize(self) -> None:
        """Wait for the device, and raise the error of a failed kernel."""

    def free_bytes(self) -> int:
        """Return the number of bytes that can be allocated."""


class CpuTimer:
    """A timer of wall time on the CPU.

    Args:
        clock: Function that returns the time in seconds.
        block_seconds: Least duration of a lap. A lap repeats its calls until it is this long, so
            that the resolution of the clock and the scheduler hardly matter.
    """

    device = torch.device("cpu")

    def __init__(self, clock: Clock = time.perf_counter, block_seconds: float = 0.0) -> None:
        self._clock, self._block_seconds = clock, block_seconds

    def context(self) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up, and find the number of calls of a lap. ``capture`` has no effect."""
        series = list(calls)
        _time_calls(series, self._clock)  # the first calls take longer
        while True:
            seconds = _time_calls(series, self._clock) * len(series)
            if seconds * _SEARCH >= self._block_seconds:
                break
            wanted = math.ceil(len(series) * self._block_seconds / max(seconds, 1e-9))
            series = list(calls) * math.ceil(min(wanted, 10 * len(series)) / len(calls))
        return Prepared("cpu", functools.partial(_time_calls, series, self._clock))

    def host_seconds(self, call: Call) -> float | None:
        """Return ``None``, since on the CPU the host does all the work."""
        return None

    def peak_bytes(self, call: Call) -> int | None:
        """Return ``None``, since torch doesn't count the CPU's memory."""
        return None

    def synchronize(self) -> None:
        """Do nothing, since a call on the CPU has finished when it returns."""

    def free_bytes(self) -> int:
        """Return a fixed number of bytes, more than small shapes need."""
        return 1 << 30


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on ``count`` threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _time_calls(calls: Sequence[Call], clock: Clock) -> float:
    """Return the mean seconds of one call, over all ``calls`` in a row."""
    start = clock()
    for call in calls:
        call()
    return (clock() - start) / len(calls)


class GpuTimer:
    """A timer of GPU time between two events, without host time, with a cold L2 cache.

    A lap first overwrites a buffer several times as large as the cache. It repeats this until the
    GPU stays busy while the host queues everything that follows. Then the calls run between the two
    events. Each call has its own tensors, so no call finds its tensors in the cache. At the first
    event and at the last, the cache is full of data that have yet to be written back.

    Args:
        clock: Function that returns the host's time in seconds.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.device = torch.device("cuda", torch.cuda.current_device())
        cache: int = torch.cuda.get_device_properties(self.device).L2_cache_size
        words = _SCRUBS_PER_CACHE * cache // 4
        self._scrubbed = torch.zeros(words, dtype=torch.int32, device=self.device)
        make: Callable[..., Any] = torch.cuda.Stream  # it has no type annotations
        self._stream = make(self.device)
        self._scrub_seconds = 0.0
        with self.context():
            self._scrub_seconds = min(self._elapsed(self._scrub) for _ in range(5))

    def context(self) -> AbstractContextManager[object]:
        """Return a context on the timer's stream, on which graphs are captured."""
        context: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return context

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up ``calls``, and if ``capture`` is true and possible, capture them as a graph."""
        with self.context():
            for call in calls:
                call()
            self.synchronize()
            start = self._clock()
            kept = [call() for call in calls]
            host_seconds = self._clock() - start
            self.synchronize()
            del kept
            note = None
            if capture:
                try:
                    replay = self._capture(calls)
                except Exception as error:
                    self.synchronize()  # raises an error if the GPU is lost
                    note = f"no graph: {first_line(error)}"
                else:
                    lap = functools.partial(self._lap, replay, host_seconds / 10, len(calls))
                    return Prepared("graph", lap)

        def run() -> object:  # keeps all results, so that each has its own memory
            return [call() for call in calls]

        return Prepared("events", functools.partial(self._lap, run, host_seconds, len(calls)), note)

    def host_seconds(self, call: Call) -> float | None:
        """Return the median over a few series of calls, whose results are freed at once."""
        rounds = []
        with self.context():
            for _ in range(_HOST_ROUNDS):
                self.synchronize()
                rounds.append(_time_calls([call] * _HOST_CALLS, self._clock))
            self.synchronize()
        return statistics.median(rounds)

    def peak_bytes(self, call: Call) -> int | None:
        """Return how many bytes torch's peak of allocations is above the level before the call."""
        with self.context():
            self.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            result = call()
            self.synchronize()
            del result
        return torch.cuda.max_memory_allocated(self.device) - before

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        """Return the bytes that are free on the GPU and in torch's cache."""
        free, _ = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + cached)

    def _capture(self, calls: Sequence[Call]) -> Call:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            kept = [call() for call in calls]
        graph.replay()
        self.synchronize()

        def replay() -> object:
            graph.replay()
            return kept  # the graph writes to the memory of these tensors

        return replay

    def _lap(self, run: Call, host_seconds: float, count: int) -> float:
        with self.context():
            for _ in range(1 + math.ceil(1.5 * host_seconds / self._scrub_seconds)):
                self._scrub()
            return self._elapsed(run) / count

    def _elapsed(self, run: Call) -> float:
        make: Callable[..., Any] = torch.cuda.Event  # it has no type annotations
        start, end = make(enable_timing=True), make(enable_timing=True)
        start.record(self._stream)
        result = run()
        end.record(self._stream)
        end.synchronize()
        del result
        return float(start.elapsed_time(end)) / 1e3

    def _scrub(self) -> None:
        self._scrubbed.add_(1)


def make_timer() -> Timer:
    """Return the timer for this machine's GPU, or for its CPU if it has no GPU."""
    return GpuTimer() if torch.cuda.is_available() else CpuTimer()
