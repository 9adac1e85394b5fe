"""Clocks for calls: on a GPU by graph replay or events with a cold cache, else by wall time.

``triton.testing`` has both GPU clocks, but neither a cold cache within a graph nor turns of several
functions, so the two are built here on torch's events and graphs.
"""

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from benchmarks.rows import first_line
from benchmarks.timing import Clock, Lap

Call = Callable[[], object]

_HOST_ROUNDS = 5
_HOST_CALLS = 20  # few enough that the GPU's queue never fills and makes the host wait
_SCRUBS_PER_CACHE = 4  # size of the buffer that displaces the cache, in sizes of the cache
_SEARCH = 1.3  # a block may be this much too short before its length is looked for again


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A series of calls that is ready to be timed.

    Attributes:
        timer: ``"graph"``, ``"events"`` or ``"cpu"``.
        lap: Makes all calls once and returns the seconds that one call took.
        note: Why the calls are no graph, if they were to be one.
    """

    timer: str
    lap: Lap
    note: str | None = None


class Timer(Protocol):
    """How the calls on a device are timed."""

    device: torch.device

    def context(self) -> AbstractContextManager[object]:
        """Return the context in which calls, and the forward passes before them, must be made."""

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up and make ready ``calls``: the same call on different tensors."""

    def host_seconds(self, call: Call) -> float | None:
        """Return the host's time for a call, without waiting for the device."""

    def peak_bytes(self, call: Call) -> int | None:
        """Return how much memory a call takes at most, its result included."""

    def synchronize(self) -> None:
        """Wait for the device, and raise the error of a kernel that failed."""

    def free_bytes(self) -> int:
        """Return how much memory can be allocated."""


class CpuTimer:
    """Wall time on the CPU.

    Args:
        clock: Returns the time in seconds.
        block_seconds: Least length of a lap, which repeats its calls until it is as long: the clock
            and the scheduler then hardly matter.
    """

    device = torch.device("cpu")

    def __init__(self, clock: Clock = time.perf_counter, block_seconds: float = 0.0) -> None:
        self._clock, self._block_seconds = clock, block_seconds

    def context(self) -> AbstractContextManager[object]:
        """Return a context without effect."""
        return contextlib.nullcontext()

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up, and find out how many calls make a lap; there is nothing to capture."""
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
        """Return ``None``: on the CPU the host does all the work."""
        return None

    def peak_bytes(self, call: Call) -> int | None:
        """Return ``None``: torch keeps no account of the CPU's memory."""
        return None

    def synchronize(self) -> None:
        """Do nothing: a call on the CPU has ended when it returns."""

    def free_bytes(self) -> int:
        """Return a size that small shapes stay under."""
        return 1 << 30


def _time_calls(calls: Sequence[Call], clock: Clock) -> float:
    """Return the seconds that one of ``calls`` takes, over all of them in a row."""
    start = clock()
    for call in calls:
        call()
    return (clock() - start) / len(calls)


class GpuTimer:
    """Time on the GPU between two events, free of the host's, the L2 cache cold.

    A lap first overwrites a buffer of several times the cache, as often as it takes to keep the GPU
    busy until the host has queued all that follows. Then come, between the events, calls that each
    have their own tensors, so none finds its own in the cache. The cache is full of data to be
    written back at the start and at the end alike.

    Args:
        clock: Returns the host's time in seconds.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.device = torch.device("cuda", torch.cuda.current_device())
        cache: int = torch.cuda.get_device_properties(self.device).L2_cache_size
        words = _SCRUBS_PER_CACHE * cache // 4
        self._scrubbed = torch.zeros(words, dtype=torch.int32, device=self.device)
        make: Callable[..., Any] = torch.cuda.Stream  # carries no types
        self._stream = make(self.device)
        self._scrub_seconds = 0.0
        with self.context():
            self._scrub_seconds = min(self._elapsed(self._scrub) for _ in range(5))

    def context(self) -> AbstractContextManager[object]:
        """Return a context on the timer's stream: the one on which graphs are captured."""
        context: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return context

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up, and capture a graph of all calls if asked to and possible."""
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
                    self.synchronize()  # raises if the GPU itself is lost
                    note = f"no graph: {first_line(error)}"
                else:
                    lap = functools.partial(self._lap, replay, host_seconds / 10, len(calls))
                    return Prepared("graph", lap)

        def run() -> object:  # keeps all results until the last, for each to have its own memory
            return [call() for call in calls]

        return Prepared("events", functools.partial(self._lap, run, host_seconds, len(calls)), note)

    def host_seconds(self, call: Call) -> float | None:
        """Return the median over a few series of calls, whose results are dropped at once."""
        rounds = []
        with self.context():
            for _ in range(_HOST_ROUNDS):
                self.synchronize()
                rounds.append(_time_calls([call] * _HOST_CALLS, self._clock))
            self.synchronize()
        return statistics.median(rounds)

    def peak_bytes(self, call: Call) -> int | None:
        """Return how far torch's allocations rose above where they stood."""
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
        """Return what the GPU and torch's own cache have left."""
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
            return kept  # theirs is the memory that the graph writes to

        return replay

    def _lap(self, run: Call, host_seconds: float, count: int) -> float:
        with self.context():
            for _ in range(1 + math.ceil(1.5 * host_seconds / self._scrub_seconds)):
                self._scrub()
            return self._elapsed(run) / count

    def _elapsed(self, run: Call) -> float:
        make: Callable[..., Any] = torch.cuda.Event  # carries no types
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
    """Return the timer of this machine's GPU, or of its CPU if it has none."""
    return GpuTimer() if torch.cuda.is_available() else CpuTimer()
