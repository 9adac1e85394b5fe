"""Clocks for the kernels: on a GPU by graph replay or events with a cold cache, else by wall time.

``triton.testing`` has both GPU clocks but neither a cold cache within a graph nor several functions
measured in turns, so the two are built here on torch's events and graphs.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Protocol

import torch

from benchmarks import pairs
from benchmarks.pairs import Clock

Call = Callable[[], object]
Lap = Callable[[], float]

_HOST_ROUNDS = 5
_HOST_CALLS = 20  # few enough that the GPU's queue never fills and makes the host wait
_SCRUBS_PER_CACHE = 4  # the buffer that displaces the cache, in sizes of the cache
_GPU_COPIES = (256 << 20, 512 << 20, 1 << 30, 2 << 30)  # bytes moved
_CPU_COPIES = (8 << 20, 32 << 20)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A series of calls that is ready to be timed.

    Attributes:
        timer: ``"graph"``, ``"events"`` or ``"cpu"``.
        lap: Makes all calls once and returns the seconds that one took.
        note: Why it is not a graph, if it was to be one.
    """

    timer: str
    lap: Lap
    note: str | None = None


class Timer(Protocol):
    """What the measurements need of a device."""

    device: torch.device

    def context(self) -> AbstractContextManager[object]:
        """Return where calls have to be made, and the forward passes of backward passes."""

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up and make ready ``calls``, equal but for their tensors, each of its own."""

    def host_seconds(self, call: Call) -> float | None:
        """Return the wall time of a call that nobody waits for."""

    def peak_bytes(self, call: Call) -> int | None:
        """Return how much memory a call takes at most, its result included."""

    def synchronize(self) -> None:
        """Wait for the device, and raise what went wrong on it."""

    def free_bytes(self) -> int:
        """Return how much memory can be allocated."""


class CpuTimer:
    """Wall time on the CPU: no figure of a kernel, but the whole harness runs on it.

    Args:
        clock: Returns the time in seconds.
    """

    device = torch.device("cpu")

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock

    def context(self) -> AbstractContextManager[object]:
        """Return a context of no effect."""
        return contextlib.nullcontext()

    def prepare(self, calls: Sequence[Call], capture: bool = True) -> Prepared:
        """Warm up; there is nothing to capture."""
        for call in calls:
            call()

        def lap() -> float:
            start = self._clock()
            for call in calls:
                call()
            return (self._clock() - start) / len(calls)

        return Prepared("cpu", lap)

    def host_seconds(self, call: Call) -> float | None:
        """Return ``None``: the host does all the work, there is no waiting to leave out."""
        return None

    def peak_bytes(self, call: Call) -> int | None:
        """Return ``None``: torch keeps no account of the CPU's memory."""
        return None

    def synchronize(self) -> None:
        """Do nothing: every call has ended when it returns."""

    def free_bytes(self) -> int:
        """Return a size that small shapes stay under."""
        return 1 << 30


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
                rounds.append(pairs.time_calls(call, _HOST_CALLS, self._clock))
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


@dataclasses.dataclass(frozen=True)
class Budget:
    """How often a set of laps is run: ``least`` rounds, then until ``seconds`` or ``most``."""

    seconds: float
    least: int = 5
    most: int = 100


def interleave(
    laps: Mapping[str, Lap], budget: Budget, clock: Clock = time.perf_counter
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Run all laps in turns, there and back, round after round; the first round is a warm-up.

    Args:
        laps: By name, in the order of a round: see :func:`benchmarks.pairs.interleave`.
        budget: When to stop.
        clock: Returns the time in seconds.

    Returns:
        The seconds of each round by name, and the error of each lap that raised: such a lap is not
        run again, and the others are.
    """
    samples: dict[str, list[float]] = {name: [] for name in laps}
    errors: dict[str, Exception] = {}

    def guarded(name: str) -> float:
        try:
            return math.nan if name in errors else laps[name]()
        except Exception as error:
            errors[name] = error
            return math.nan

    measures = [functools.partial(guarded, name) for name in laps]
    pairs.interleave(measures)
    start = clock()
    for done in range(budget.most):
        if done >= budget.least and clock() - start >= budget.seconds:
            break
        for name, seconds in zip(laps, pairs.interleave(measures), strict=True):
            samples[name].append(seconds)
    return {name: samples[name] for name in laps if name not in errors}, errors


@dataclasses.dataclass(frozen=True)
class Copy:
    """A measured copy from device memory to device memory.

    Attributes:
        bytes: Bytes read plus bytes written.
        seconds: Median time.
        spread: Interquartile range of the times.
        timer: What timed it.
    """

    bytes: int
    seconds: float
    spread: float
    timer: str

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds


def copies(moved: int, count: int, device: torch.device) -> list[Call]:
    """Return ``count`` copies, each between tensors of its own, that move ``moved`` bytes each."""
    words = max(1, moved // 8)  # of four bytes, read and written
    return [
        functools.partial(
            torch.empty(words, dtype=torch.int32, device=device).copy_,
            torch.empty(words, dtype=torch.int32, device=device).random_(),
        )
        for _ in range(count)
    ]


def measure_copies(timer: Timer, budget: Budget) -> list[Copy]:
    """Measure copies of several large sizes: the highest bandwidth is the floors'."""
    measured: list[Copy] = []
    for moved in _GPU_COPIES if timer.device.type == "cuda" else _CPU_COPIES:
        if moved * 5 > timer.free_bytes() and measured:
            break
        with timer.context():
            calls = copies(moved, 4, timer.device)
        prepared = timer.prepare(calls)
        samples, errors = interleave({"copy": prepared.lap}, budget)
        if errors:
            raise errors["copy"]
        seconds = samples["copy"]
        median, spread = statistics.median(seconds), pairs.spread_of(seconds)
        measured.append(Copy(moved, median, spread, prepared.timer))
    return measured


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeoutError` in what takes longer, as soon as it is back in Python.

    Of no effect outside the main thread, and on systems without ``SIGALRM``.
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


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of what it says."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]
