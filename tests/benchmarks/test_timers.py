"""The timers: the CPU's by a scripted clock, the GPU's on a simulated GPU.

The simulation has a host that queues work, and a device that does the work later.
"""

import contextlib
import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.timers import CpuTimer, GpuTimer, make_timer
from tests.benchmarks.clock import Clock

CACHE = 1 << 20
SCRUB = 100e-6  # how long it takes to overwrite the buffer


class Simulation:
    """A stream whose work starts when it is queued and what came before is done."""

    def __init__(self) -> None:
        self.host = self.device = 0.0
        self.scrubs = 0
        self.captured: list[float] | None = None
        self.held = 0

    def clock(self) -> float:
        return self.host

    def launch(self, seconds: float, host_seconds: float = 0.0) -> "Result":
        self.host += host_seconds
        if self.captured is not None:
            self.captured.append(seconds)
        else:
            self.device = max(self.device, self.host) + seconds
        return Result(self)

    def synchronize(self, device: Any = None) -> None:
        if self.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.host = max(self.host, self.device)

    @contextlib.contextmanager
    def capture(self, graph: "Graph", stream: Any) -> Iterator[None]:
        self.captured = []
        try:
            yield
            graph.nodes = self.captured
        finally:
            self.captured = None


class Result:
    """Memory that a call returns: counted while it is held."""

    most = 0

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        simulation.held += 1
        Result.most = max(Result.most, simulation.held)

    def __del__(self) -> None:
        self.simulation.held -= 1


class Graph:
    simulation: Simulation
    nodes: list[float]

    def replay(self) -> None:
        self.simulation.host += 10e-6
        for seconds in self.nodes:
            self.simulation.launch(seconds)


class Event:
    simulation: Simulation

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self, stream: Any) -> None:
        self.at = max(self.simulation.device, self.simulation.host)

    def synchronize(self) -> None:
        self.simulation.synchronize()

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) * 1e3


class Buffer:
    def __init__(self, simulation: Simulation, words: int) -> None:
        self.simulation, self.words = simulation, words

    def add_(self, number: int) -> None:
        assert self.words * 4 == 4 * CACHE
        self.simulation.scrubs += 1
        self.simulation.launch(SCRUB)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    simulation = Simulation()
    monkeypatch.setattr(Event, "simulation", simulation, raising=False)
    monkeypatch.setattr(Graph, "simulation", simulation, raising=False)
    answers = {
        "current_device": lambda: 0,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=CACHE),
        "Stream": lambda device: object(),
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": simulation.synchronize,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": simulation.capture,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "zeros", lambda words, **_: Buffer(simulation, words))
    return simulation


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("host_seconds", [1e-6, 40e-6, 3e-3])
def test_the_time_is_the_devices_however_slow_the_host(
    gpu: Simulation, capture: bool, host_seconds: float
) -> None:
    timer = GpuTimer(gpu.clock)
    calls = [lambda: gpu.launch(5e-6, host_seconds)] * 8
    prepared = timer.prepare(calls, capture)
    assert prepared.timer == ("graph" if capture else "events")
    assert prepared.note is None
    for _ in range(3):
        assert prepared.lap() == pytest.approx(5e-6)
    assert timer.host_seconds(calls[0]) == pytest.approx(host_seconds)


def test_every_lap_finds_a_cold_cache(gpu: Simulation) -> None:
    prepared = GpuTimer(gpu.clock).prepare([lambda: gpu.launch(1e-6)] * 4)
    before = gpu.scrubs
    for laps in (1, 2, 3):
        prepared.lap()
        assert gpu.scrubs >= before + laps


@pytest.mark.parametrize("capture", [True, False])
def test_no_call_of_a_lap_gets_the_memory_of_another(gpu: Simulation, capture: bool) -> None:
    prepared = GpuTimer(gpu.clock).prepare([lambda: gpu.launch(1e-6)] * 6, capture)
    Result.most = 0
    prepared.lap()
    assert Result.most >= 6  # all results of a lap are alive at its end
    assert gpu.held == (6 if capture else 0)  # a graph's for as long as the graph
    del prepared
    assert gpu.held == 0


def test_what_cannot_be_captured_is_timed_by_events(gpu: Simulation) -> None:
    def waits() -> object:
        result = gpu.launch(5e-6, 1e-6)
        gpu.synchronize()
        return result

    prepared = GpuTimer(gpu.clock).prepare([waits] * 4)
    assert prepared.timer == "events"
    assert prepared.note == (
        "no graph: RuntimeError: operation not permitted when stream is capturing"
    )
    assert prepared.lap() >= 5e-6


def test_a_gpu_lost_while_capturing_is_no_fallback(
    gpu: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = GpuTimer(gpu.clock)

    def lost(device: Any = None) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def breaks() -> object:
        if gpu.captured is not None:
            monkeypatch.setattr(torch.cuda, "synchronize", lost)
            raise RuntimeError("misaligned address")
        return gpu.launch(1e-6)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        timer.prepare([breaks])


def test_a_lap_is_the_mean_of_its_calls() -> None:
    clock = Clock()
    calls = [functools.partial(clock.pass_by, seconds) for seconds in (0.1, 0.2, 0.6)]
    prepared = CpuTimer(clock).prepare(calls)
    start = clock.now
    assert prepared.timer == "cpu"
    assert prepared.lap() == pytest.approx(0.3)
    assert clock.now - start == pytest.approx(0.9)


@pytest.mark.parametrize("seconds", [1e-6, 0.9e-3, 3e-2])
def test_a_lap_on_the_cpu_is_a_block_of_calls(seconds: float) -> None:
    clock = Clock()
    prepared = CpuTimer(clock, block_seconds=1e-2).prepare([clock.spend(seconds)])
    start = clock.now
    assert prepared.lap() == pytest.approx(seconds)
    spent = clock.now - start
    assert 1e-2 / 1.3 <= spent <= max(1.31e-2, 1.01 * seconds)


def test_the_first_call_does_not_decide_the_length_of_a_lap() -> None:
    clock, costs = Clock(), iter([1.0])
    prepared = CpuTimer(clock, 1e-2).prepare([lambda: clock.pass_by(next(costs, 1e-4))])
    start = clock.now
    prepared.lap()
    assert clock.now - start == pytest.approx(1e-2, rel=0.02)


def test_this_machines_timer() -> None:
    assert isinstance(make_timer(), GpuTimer if torch.cuda.is_available() else CpuTimer)


@pytest.mark.gpu
def test_what_a_real_gpu_cannot_capture_is_timed_by_events_and_says_so() -> None:
    timer = GpuTimer()
    with timer.context():
        x = torch.randn(1024, device=timer.device)
    prepared = timer.prepare([lambda: x.sum().item()])
    assert prepared.timer == "events"
    assert prepared.note is not None
    assert prepared.note.startswith("no graph: ")
    assert prepared.lap() > 0
    again = timer.prepare([lambda: x + 1])  # the failed capture left nothing behind
    assert again.timer == "graph"
    assert again.lap() > 0


@pytest.mark.gpu
def test_peak_memory_is_that_of_the_call() -> None:
    timer = GpuTimer()
    with timer.context():
        x = torch.randn(1 << 22, device=timer.device)
    assert timer.peak_bytes(lambda: (x + 1) * 2) == 2 * x.nbytes
