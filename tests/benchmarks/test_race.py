"""A race between providers of a known time or a known fault, and the rows that come of it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.contenders import Case, make_calls, saved_bytes
from benchmarks.kernel_rows import COPY, bound, with_ratios
from benchmarks.providers import EAGER, OURS, Function
from benchmarks.race import GpuLostError, Race, Settings
from benchmarks.results import Results, Row
from benchmarks.shapes import OPS
from benchmarks.timing import Budget, CpuTimer, make_timer
from tests.benchmarks import fake_op
from tests.benchmarks.fake_op import NAME, FragileTimer, double, provider, taking
from tests.benchmarks.test_timing import FakeClock

pytestmark = pytest.mark.usefixtures("with_fake_op")
BANDWIDTH = 1e9
CASE = Case(NAME, fake_op.OP.shapes[0], "fp32", "contiguous")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def measure(tmp_path: Path, clock: FakeClock, **settings: Any) -> Results:
    """Race on :data:`CASE` by a clock that only the providers move."""
    results = Results.create(tmp_path / "kernels.json", resume=True)
    settings = {"budget": Budget(0.0, least=3), **settings}
    Race(CpuTimer(clock), results, Settings(**settings), BANDWIDTH).run(CASE)
    return Results.load(results.path)


def rows_by_name(results: Results, direction: str = "forward") -> dict[str, Row]:
    rows = results.find(direction=direction)
    assert len({row["provider"] for row in rows}) == len(rows)
    return {row["provider"]: row for row in rows}


def test_known_times_give_known_figures(
    tmp_path: Path, clock: FakeClock, take: Callable[..., None]
) -> None:
    times = {OURS: 2e-6, EAGER: 6e-6, "fast": 4e-6, "slow": 9e-6}
    take(*(provider(name, taking(seconds, clock.pass_by)) for name, seconds in times.items()))
    results = measure(tmp_path, clock)
    forward = rows_by_name(results)
    for name, seconds in times.items():
        row = forward[name]
        moved = 8 * 4 * 2
        assert row["status"] == "ok"
        assert row["timer"] == "cpu"
        assert row["microseconds"] == pytest.approx(seconds * 1e6)
        assert row["spread"] == pytest.approx(0, abs=1e-5)
        assert row["bytes"] == moved
        assert row["gbytes_per_s"] == pytest.approx(moved / seconds / 1e9)
        assert row["percent_of_floor"] == pytest.approx(100 * moved / BANDWIDTH / seconds)
        assert row["ratio_to_eager"] == pytest.approx(6e-6 / seconds)
        assert row["dims"] == [1, 8]
        assert (row["saved_bytes"], row["host_us"], row["peak_mib"]) == (0, None, None)
    assert forward[OURS]["ratio_to_best_peer"] == pytest.approx(2.0)
    assert forward[OURS]["best_peer"] == "fast"
    assert forward["fast"]["ratio_to_best_peer"] is None
    both = rows_by_name(results, "both")
    assert both[OURS]["microseconds"] == pytest.approx(2.0)  # its backward takes no time
    assert both[OURS]["bytes"] == 2 * forward[OURS]["bytes"]
    assert rows_by_name(results, "backward")[OURS]["microseconds"] == pytest.approx(0.0, abs=1e-5)


def test_a_sleep_is_measured_by_the_real_clock(tmp_path: Path, take: Callable[..., None]) -> None:
    take(provider(OURS, taking(2e-3)), provider(EAGER, taking(0.0)))
    results = Results.create(tmp_path / "kernels.json")
    Race(CpuTimer(), results, Settings(budget=Budget(0.0)), BANDWIDTH).run(CASE)
    row = rows_by_name(results)[OURS]
    assert 2000 <= row["microseconds"] < 4000
    assert rows_by_name(results)[EAGER]["microseconds"] < 1000


def absent() -> Function:
    import no_such_package  # type: ignore[import-not-found]

    function: Function = no_such_package.double
    return function


def raising(x: Tensor) -> Tensor:
    raise RuntimeError("no kernel\nfor this type")


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return double(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise ValueError("no backward here")


def test_faults_are_rows_and_are_not_timed(
    tmp_path: Path, clock: FakeClock, take: Callable[..., None]
) -> None:
    calls: list[str] = []

    def wrong(x: Tensor) -> Tensor:
        calls.append("wrong")
        return x * 2.001

    take(
        provider(OURS, taking(2e-6, clock.pass_by)),
        provider(EAGER, taking(4e-6, clock.pass_by)),
        provider("wrong", lambda: wrong),
        provider("absent", absent),
        provider("raising", lambda: raising),
        provider("backward", lambda: FailsBackward.apply),
        provider("gpu", lambda: double, needs_gpu=True),
    )
    results = measure(tmp_path, clock)
    expected = {
        OURS: ("ok", None),
        EAGER: ("ok", None),
        "wrong": ("wrong", "result: error 0.0005"),
        "absent": ("missing", "ModuleNotFoundError: No module named 'no_such_package'"),
        "raising": ("failed", "RuntimeError: no kernel"),
        "backward": ("failed", "ValueError: no backward here"),
        "gpu": ("skipped", "needs a GPU"),
    }
    for direction in fake_op.OP.directions:
        rows = rows_by_name(results, direction)
        assert set(rows) == set(expected)
        for name, (status, reason) in expected.items():
            assert rows[name]["status"] == status
            assert (rows[name]["reason"] or "").startswith(reason or "")
            timed = rows[name]["microseconds"] is not None
            assert timed == (status == "ok")
    assert len(calls) <= 2  # to check it and to see what it keeps: never on the clock
    assert rows_by_name(results)[OURS]["best_peer"] == EAGER  # the wrong one, though fast, is none


def test_failing_on_the_clock_is_a_row_too(
    tmp_path: Path, clock: FakeClock, take: Callable[..., None]
) -> None:
    calls = 0

    def tires(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise MemoryError("no more")
        return double(x)

    take(provider(OURS, lambda: tires), provider(EAGER, taking(1e-6, clock.pass_by)))
    rows = rows_by_name(measure(tmp_path, clock))
    assert (rows[OURS]["status"], rows[OURS]["reason"]) == ("failed", "MemoryError: no more")
    assert rows[OURS]["microseconds"] is None
    assert rows[EAGER]["status"] == "ok"


def test_a_reference_that_fails_leaves_nobody_unreported(
    tmp_path: Path, clock: FakeClock, take: Callable[..., None]
) -> None:
    take(provider(OURS, lambda: double), provider(EAGER, lambda: raising))
    rows = rows_by_name(measure(tmp_path, clock))
    assert {row["status"] for row in rows.values()} == {"failed"}
    assert rows[OURS]["reason"] == "its reference did: RuntimeError: no kernel"


def test_preparing_for_too_long_is_a_failure(
    tmp_path: Path, clock: FakeClock, take: Callable[..., None]
) -> None:
    def slow() -> Function:
        time.sleep(5)
        return double

    take(provider(OURS, lambda: double), provider(EAGER, lambda: double), provider("slow", slow))
    rows = rows_by_name(measure(tmp_path, clock, preparation_seconds=0.05))
    assert rows["slow"]["status"] == "failed"
    assert "took more than 0.05 s" in rows["slow"]["reason"]
    assert rows[OURS]["status"] == "ok"


def test_no_time_left_is_a_row_that_a_resumed_run_measures(
    tmp_path: Path, clock: FakeClock, take: Callable[..., None]
) -> None:
    take(*(provider(name, taking(1e-6, clock.pass_by)) for name in (OURS, EAGER)))
    results = measure(tmp_path, clock, deadline=time.monotonic() - 1)
    assert [row["status"] for row in results.rows] == ["timeout"] * 6
    results = measure(tmp_path, clock)
    assert [row["status"] for row in results.rows] == ["ok"] * 6


def test_a_resumed_run_with_more_peers_races_all_again(
    tmp_path: Path, clock: FakeClock, take: Callable[..., None]
) -> None:
    take(*(provider(n, taking(1e-6, clock.pass_by)) for n in (OURS, EAGER, "a", "b")))
    first = measure(tmp_path, clock, peers=("a",))
    assert set(rows_by_name(first)) == {OURS, "a"}
    assert rows_by_name(first)[OURS]["ratio_to_eager"] is None
    second = measure(tmp_path, clock, peers=("b", EAGER))
    assert set(rows_by_name(second)) == {OURS, "a", "b", EAGER}
    assert {row["status"] for row in second.rows} == {"ok"}
    moment = clock.now
    third = measure(tmp_path, clock, peers=("b",))
    assert third.rows == second.rows
    assert clock.now == moment  # nothing ran


def test_each_case_is_compiled_afresh(
    tmp_path: Path,
    clock: FakeClock,
    take: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
    monkeypatch.setattr(torch.compiler, "reset", lambda: events.append("reset"))

    def make() -> Function:
        events.append("make")
        return double

    take(provider(OURS, lambda: double), provider(EAGER, lambda: double), provider("c", make))
    measure(tmp_path, clock)
    assert events == ["reset", "make"]  # else a limit on recompilations ends in eager


def test_a_provider_that_breaks_the_gpu_is_named_and_left_out_when_resumed(
    tmp_path: Path, take: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FragileTimer, "broken", False)

    def breaks(x: Tensor) -> Tensor:
        FragileTimer.broken = True
        raise RuntimeError("misaligned address")

    take(*(provider(n, lambda: double) for n in (OURS, EAGER)), provider("bad", lambda: breaks))
    results = Results.create(tmp_path / "kernels.json")
    settings = Settings(budget=Budget(0.0, least=1))
    with pytest.raises(GpuLostError, match=r"bad broke the GPU's context: .*misaligned"):
        Race(FragileTimer(), results, settings, BANDWIDTH).run(CASE)
    assert [(row["provider"], row["status"]) for row in results.rows] == [("bad", "crashed")] * 3
    FragileTimer.broken = False  # another process
    Race(FragileTimer(), results, settings, BANDWIDTH).run(CASE)
    assert not FragileTimer.broken
    for direction in fake_op.OP.directions:
        statuses = {n: row["status"] for n, row in rows_by_name(results, direction).items()}
        assert statuses == {OURS: "ok", EAGER: "ok", "bad": "crashed"}


def row(name: str, microseconds: float | None, status: str = "ok") -> Row:
    return {"provider": name, "microseconds": microseconds, "status": status}


def test_ratios_are_the_others_time_over_ones_own() -> None:
    rows = [row(OURS, 10.0), row(EAGER, 30.0), row("best", 15.0), row("wrong", 1.0, "wrong")]
    ours, eager, best, wrong = with_ratios(rows)
    assert (ours["ratio_to_eager"], ours["ratio_to_best_peer"]) == (3.0, 1.5)
    assert (eager["ratio_to_eager"], best["ratio_to_eager"]) == (1.0, 2.0)
    assert "ratio_to_eager" not in wrong
    (alone,) = with_ratios([row(OURS, 10.0)])
    assert "ratio_to_best_peer" not in alone


def test_small_shapes_are_bound_by_the_launch() -> None:
    assert bound(4_000_000, copy_us=1.1, bandwidth=4e12) == "memory"
    assert bound(4_000, copy_us=2.0, bandwidth=4e12) == "launch"


def test_saved_bytes_are_those_of_no_input() -> None:
    x, y = (torch.randn(100, requires_grad=True) for _ in range(2))
    assert saved_bytes(lambda x, y: x * y, (x, y)) == 0
    assert saved_bytes(lambda x, y: x.exp() * y, (x, y)) == 400  # once, though kept twice
    assert saved_bytes(lambda x, y: x.exp() + y.tanh(), (x, y)) == 800
    assert saved_bytes(lambda x, y: x[10:].sin() + y[10:], (x, y)) == 0  # a view of an input


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_calls_make_the_passes_they_are_named_for(direction: str) -> None:
    sets = [(torch.randn(5, requires_grad=True),) for _ in range(2)]
    grads = [torch.randn(5) for _ in sets]
    calls = make_calls(lambda x: x.square(), sets, grads, direction)
    for call, (x,), grad in zip(calls, sets, grads, strict=True):
        for _ in range(2):  # again and again
            result = call()
            expected = x.square() if direction == "forward" else 2 * x * grad
            result = result[0] if isinstance(result, tuple) else result
            assert isinstance(result, Tensor)
            torch.testing.assert_close(result, expected)
        assert x.grad is None


@pytest.mark.gpu
def test_layer_norm_is_timed_as_a_graph(tmp_path: Path) -> None:
    results = Results.create(tmp_path / "kernels.json")
    shape = next(s for s in OPS["layer_norm"].shapes if s.name == "Llama 4096")
    timer = make_timer()
    settings = Settings(peers=(EAGER, "compile"), budget=Budget(0.2))
    Race(timer, results, settings, bandwidth=4e12).run(
        Case("layer_norm", shape, "bf16", "contiguous")
    )
    assert {row["status"] for row in results.rows} == {"ok"}
    assert {row["timer"] for row in results.rows} == {"graph"}
    assert COPY not in {row["provider"] for row in results.rows}
    for found in results.find(provider=OURS):
        assert found["peak_mib"] >= 0
        assert found["error"] <= found["allowed_error"]
