import gc
import time
from collections.abc import Callable

import pytest

from benchmarks.pairs import compare, interleave, spread_of, time_calls


class Clock:
    """Moves only as far as calls spend it; each second spent slows the next by ``drift``."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now = 100.0
        self.drift = drift

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds * (1 + self.drift * (self.now - 100.0))

        return call


def test_known_costs() -> None:
    clock = Clock()
    result = compare(clock.spend(3e-3), clock.spend(2e-3), rounds=4, clock=clock)
    assert result.ratio == pytest.approx(1.5)
    assert result.spread == pytest.approx(0, abs=1e-9)
    assert result.seconds == pytest.approx(3e-3)
    assert result.peer_seconds == pytest.approx(2e-3)


def test_real_costs() -> None:
    slow, fast = (lambda s=s: time.sleep(s) for s in (4e-3, 2e-3))
    result = compare(slow, fast, rounds=7)
    assert result.ratio == pytest.approx(2, rel=0.2)
    assert result.seconds == pytest.approx(4e-3, rel=0.3)


@pytest.mark.parametrize("swapped", [False, True])
def test_drift_cancels(swapped: bool) -> None:
    clock = Clock(drift=0.05)
    calls = [clock.spend(1e-3), clock.spend(1.1e-3)]
    ours, peer = reversed(calls) if swapped else calls
    result = compare(ours, peer, rounds=9, clock=clock)
    assert result.ratio == pytest.approx(1.1 if swapped else 1 / 1.1, rel=1e-5)


def test_disturbed_rounds_do_not_count() -> None:
    clock = Clock()
    steady, calls = clock.spend(5e-3), 0

    def disturbed() -> None:
        nonlocal calls
        calls += 1
        steady()
        clock.now += 1.0 if calls in (5, 9) else 0.0

    result = compare(disturbed, steady, rounds=9, max_seconds=100, clock=clock)
    assert result.ratio == pytest.approx(1)
    assert result.spread == pytest.approx(0, abs=1e-9)


def test_blocks_are_long_enough_for_the_clock() -> None:
    clock = Clock()
    calls = 0

    def counted() -> None:
        nonlocal calls
        calls += 1
        clock.now += 1e-6

    compare(counted, clock.spend(1e-6), rounds=1, block_seconds=1e-2, clock=clock)
    warm_up = calls
    compare(counted, clock.spend(1e-6), rounds=3, block_seconds=1e-2, clock=clock)
    assert calls - 2 * warm_up == pytest.approx(4 * 1e4, rel=0.3)  # two blocks in each round more


@pytest.mark.parametrize(("seconds", "rounds"), [(0.5e-3, 20), (0.1, 8), (1.0, 5)])
def test_slow_calls_get_fewer_rounds(seconds: float, rounds: int) -> None:
    clock = Clock()
    calls = [clock.spend(seconds)] * 2
    start = clock.now
    compare(*calls, rounds=1, block_seconds=1e-4, clock=clock)
    warm_up = clock.now - start
    start = clock.now
    compare(*calls, rounds=20, block_seconds=1e-4, max_seconds=3.0, clock=clock)
    assert clock.now - start - warm_up == pytest.approx((rounds - 1) * 4 * seconds)


def test_everyone_takes_turns_there_and_back() -> None:
    order: list[str] = []
    times = iter([1.0, 2.0, 3.0, 5.0, 4.0, 3.0])

    def measure(name: str) -> Callable[[], float]:
        def one() -> float:
            order.append(name)
            return next(times)

        return one

    assert interleave([measure(name) for name in "abc"]) == [2.0, 3.0, 4.0]
    assert "".join(order) == "abccba"


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_rests_meanwhile(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    seen = set()

    def call() -> None:
        seen.add(gc.isenabled())
        if len(seen) == 1:
            time.sleep(1e-4)

    def broken() -> None:
        raise ZeroDivisionError

    try:
        compare(call, call, rounds=1)
        assert seen == {False}
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError):
            compare(call, broken)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_time_of_a_call() -> None:
    clock = Clock()
    assert time_calls(clock.spend(0.5), 4, clock) == 0.5


def test_spread() -> None:
    assert spread_of([7.0]) == 0
    assert spread_of([1.0, 2.0, 3.0, 4.0, 100.0]) == 2
