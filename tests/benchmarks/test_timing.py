"""The clocks, with times that are known."""

import functools
import itertools
import signal
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.timing import (
    Budget,
    CpuTimer,
    GpuTimer,
    copies,
    interleave,
    make_timer,
    measure_copies,
    time_limit,
)


class FakeClock:
    """Time that passes when told to, and next to nothing at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-12
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_a_lap_is_the_mean_of_its_calls() -> None:
    clock = FakeClock()
    calls = [functools.partial(clock.pass_by, seconds) for seconds in (0.1, 0.2, 0.6)]
    prepared = CpuTimer(clock).prepare(calls)
    assert clock.now == pytest.approx(0.9)  # warmed up, each
    assert prepared.timer == "cpu"
    assert prepared.lap() == pytest.approx(0.3)


def test_a_sleep_is_measured_as_long_as_it_is() -> None:
    laps = {
        name: CpuTimer().prepare([functools.partial(time.sleep, seconds)] * 2).lap
        for name, seconds in (("short", 2e-3), ("long", 6e-3))
    }
    samples, errors = interleave(laps, Budget(0.0, least=5))
    assert not errors
    # A sleep is never shorter; the least of five is hardly longer, on a busy machine too.
    assert 2e-3 <= min(samples["short"]) < 3e-3
    assert 6e-3 <= min(samples["long"]) < 7e-3


def recorder(log: list[str], name: str) -> Callable[[], float]:
    def lap() -> float:
        log.append(name)
        return float(len(log))

    return lap


def test_laps_go_there_and_back_after_a_round_to_warm_up() -> None:
    log: list[str] = []
    samples, _ = interleave({n: recorder(log, n) for n in "abc"}, Budget(0.0, least=2, most=9))
    assert "".join(log) == "abccba" * 3
    # Each sample is the mean of the two laps of its round: 7..12, then 13..18.
    assert samples == {"a": [9.5, 15.5], "b": [9.5, 15.5], "c": [9.5, 15.5]}


def test_the_budget_says_when_to_stop() -> None:
    ticks = itertools.count()
    laps = {"a": lambda: 1.0}

    def rounds(budget: Budget) -> int:
        return len(interleave(laps, budget, clock=lambda: float(next(ticks)))[0]["a"])

    assert rounds(Budget(0.0, least=3)) == 3
    assert rounds(Budget(10.0, least=3)) == 12  # a tick a round, looked at from the third on
    assert rounds(Budget(1e9, least=3, most=7)) == 7


def test_a_lap_that_raises_is_out_and_the_others_go_on() -> None:
    log: list[str] = []

    def fails_later() -> float:
        log.append("x")
        if log.count("x") > 3:
            raise RuntimeError("out of luck")
        return 1.0

    laps = {"a": recorder(log, "a"), "x": fails_later}
    samples, errors = interleave(laps, Budget(0.0, least=4))
    assert list(samples) == ["a"]
    assert len(samples["a"]) == 4
    assert str(errors["x"]) == "out of luck"
    assert log.count("x") == 4


def test_an_interrupt_is_nobodys_error() -> None:
    def interrupt() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave({"a": interrupt}, Budget(0.0))


def test_copies_move_what_they_say() -> None:
    calls = copies(1 << 16, 3, torch.device("cpu"))
    results = [call() for call in calls]
    addresses = set()
    for call, result in zip(calls, results, strict=True):
        (source,) = call.args  # type: ignore[attr-defined]
        assert isinstance(result, Tensor)
        assert torch.equal(result, source)
        assert result.nbytes + source.nbytes == 1 << 16
        assert source.count_nonzero() > 0.9 * source.numel()
        addresses |= {result.data_ptr(), source.data_ptr()}
    assert len(addresses) == 6


def test_copies_are_measured_at_several_sizes() -> None:
    ticks = itertools.count()
    measured = measure_copies(CpuTimer(lambda: 1e-3 * next(ticks)), Budget(0.0))
    assert len({copy.bytes for copy in measured}) == len(measured) > 1
    for copy in measured:
        assert copy.seconds == pytest.approx(1e-3 / 4)  # a tick for a lap of four copies
        assert copy.bandwidth == pytest.approx(copy.bytes / copy.seconds)
        assert copy.spread == pytest.approx(0, abs=1e-9)


def test_a_time_limit_ends_what_takes_longer_and_nothing_after() -> None:
    before = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"more than 0\.05 s"), time_limit(0.05):
        time.sleep(5)
    assert time.monotonic() - start < 2
    with time_limit(0.05):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    time.sleep(0.1)  # no alarm is left


def test_this_machines_timer() -> None:
    assert isinstance(make_timer(), GpuTimer if torch.cuda.is_available() else CpuTimer)


def gpu_laps(timer: GpuTimer, moved: int, count: int) -> dict[str, float]:
    """Return the median seconds of a copy by each clock."""
    with timer.context():
        calls = copies(moved, count, timer.device)
    prepared = [timer.prepare(calls, capture) for capture in (True, False)]
    samples, errors = interleave({p.timer: p.lap for p in prepared}, Budget(0.3, least=10))
    assert not errors
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


@pytest.mark.gpu
def test_graph_and_events_agree_on_a_large_copy() -> None:
    times = gpu_laps(GpuTimer(), 1 << 29, 4)
    assert times["graph"] == pytest.approx(times["events"], rel=0.05)


@pytest.mark.gpu
def test_the_hosts_time_is_not_in_the_events() -> None:
    timer = GpuTimer()
    times = gpu_laps(timer, 1 << 12, 32)
    assert times["events"] < 5e-6
    assert times["graph"] < 5e-6

    def slow_host() -> object:
        time.sleep(1e-3)
        return torch.ones(8, device=timer.device)

    prepared = timer.prepare([slow_host] * 8, capture=False)
    assert statistics.median(prepared.lap() for _ in range(5)) < 1e-4
    assert (timer.host_seconds(slow_host) or 0) > 1e-3


@pytest.mark.gpu
def test_the_cache_is_cold() -> None:
    timer = GpuTimer()
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    with timer.context():
        x = torch.randn(cache // 16, device=timer.device)  # a quarter of it

    def read() -> object:
        return x.sum()

    cold = timer.prepare([read])  # nothing but the scrubbing between two laps
    warm = timer.prepare([read] * 64)  # the same tensor again, 63 times of 64 from the cache
    colds, warms = ([p.lap() for _ in range(20)] for p in (cold, warm))
    assert statistics.median(colds) > 1.2 * statistics.median(warms)


@pytest.mark.gpu
def test_what_cannot_be_captured_is_timed_by_events_and_says_so() -> None:
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
