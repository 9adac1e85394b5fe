"""Turns of laps with planted costs, drift, noise and errors."""

import gc
import itertools
import math
import signal
import statistics

import pytest

from benchmarks.time_limit import time_limit
from lightning_practices.timing import Budget, Lap, interleave, spread_of, take_turns
from tests.benchmarks.clock import Clock


def lap_of(clock: Clock, seconds: float) -> Lap:
    """Return a lap of a cost of ``seconds``, measured by ``clock``."""

    def lap() -> float:
        start = clock.now
        clock.pass_by(seconds)
        return clock.now - start

    return lap


def recorder(log: list[str], name: str) -> Lap:
    def lap() -> float:
        log.append(name)
        return float(len(log))

    return lap


def test_everyone_takes_turns_there_and_back() -> None:
    log: list[str] = []
    assert take_turns([recorder(log, name) for name in "abc"]) == [3.5, 3.5, 3.5]
    assert "".join(log) == "abccba"


def test_laps_go_there_and_back_after_a_round_to_warm_up() -> None:
    log: list[str] = []
    samples, _ = interleave({n: recorder(log, n) for n in "abc"}, Budget(0.0, least=2, most=9))
    assert "".join(log) == "abccba" * 3
    # Each sample is the mean of the two laps of its round: 7..12, then 13..18.
    assert samples == {"a": [9.5, 15.5], "b": [9.5, 15.5], "c": [9.5, 15.5]}


@pytest.mark.parametrize("names", list(itertools.permutations("abc")))
def test_drift_hits_all_laps_alike(names: tuple[str, ...]) -> None:
    clock = Clock(drift=0.05)
    costs = {"a": 1e-3, "b": 1.1e-3, "c": 1.2e-3}
    laps = {name: lap_of(clock, costs[name]) for name in names}
    samples, _ = interleave(laps, Budget(math.inf, least=9, most=9), clock)
    assert samples["a"][-1] > 1.001 * samples["a"][0]  # the drift is not small
    for name, seconds in samples.items():
        for mine, other in zip(seconds, samples["a"], strict=True):
            assert mine / other == pytest.approx(costs[name] / costs["a"], rel=2e-5)


def test_disturbed_rounds_change_neither_the_median_nor_the_spread() -> None:
    warm_up, quiet = [0.0] * 4, [0.0] * 4
    disturbed = [200.0, 0.0, 0.0, 0.0]
    rounds = [quiet, disturbed, quiet, quiet, quiet, disturbed, quiet, quiet, quiet]
    clock = Clock(noise=[*warm_up, *itertools.chain(*rounds)])
    laps = {"a": lap_of(clock, 3e-3), "b": lap_of(clock, 2e-3)}
    samples, _ = interleave(laps, Budget(math.inf, most=9), clock)
    assert max(samples["a"]) > 0.1
    assert statistics.median(samples["a"]) == pytest.approx(3e-3)
    assert spread_of(samples["a"]) == pytest.approx(0, abs=1e-9)
    assert samples["b"] == pytest.approx([2e-3] * 9)


def test_the_budget_says_when_to_stop() -> None:
    def rounds(budget: Budget) -> int:
        clock = Clock()
        return len(interleave({"a": lap_of(clock, 0.5)}, budget, clock)[0]["a"])

    assert rounds(Budget(0.0, least=3)) == 3
    assert rounds(Budget(10.0, least=3)) == 10  # two laps a round, a second
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


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_collector_rests_meanwhile(
    enabled: bool, error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = [enabled]
    monkeypatch.setattr(gc, "isenabled", lambda: state[-1])
    monkeypatch.setattr(gc, "enable", lambda: state.append(True))
    monkeypatch.setattr(gc, "disable", lambda: state.append(False))

    def lap() -> float:
        assert not gc.isenabled()
        if error is not None:
            raise error
        return 1.0

    if error is None:
        interleave({"a": lap}, Budget(0.0))
    else:
        with pytest.raises(error):
            interleave({"a": lap}, Budget(0.0))
    assert gc.isenabled() is enabled


def test_spread() -> None:
    assert spread_of([7.0]) == 0
    assert spread_of([1.0, 2.0, 3.0, 4.0, 100.0]) == 2


def test_a_time_limit_is_an_error_within_and_nothing_after() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(1000):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    with pytest.raises(TimeoutError, match="more than 1000 s"), time_limit(1000):
        signal.raise_signal(signal.SIGALRM)  # as if the time were up
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)  # no alarm is left
    assert signal.getsignal(signal.SIGALRM) is before
