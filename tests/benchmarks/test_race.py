"""A race between providers of a planted cost or a planted fault, and the rows that come of it."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, make_calls, saved_bytes
from benchmarks.kernel_rows import bound, with_ratios
from benchmarks.ops import DIRECTIONS, OPS
from benchmarks.providers import Function, Provider
from benchmarks.race import GpuLostError, Race, Settings, copies
from benchmarks.results import Results
from benchmarks.rows import COPY, EAGER, OURS, Row
from benchmarks.timers import CpuTimer, make_timer
from lightning_practices.timing import Budget
from tests.benchmarks.clock import Clock
from tests.benchmarks.conftest import Take
from tests.benchmarks.fake_op import NAME, SHAPES, FragileTimer, double

BANDWIDTH = 1e9
CASE = Case(NAME, SHAPES[0], "fp32", "contiguous")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def measure(tmp_path: Path, clock: Clock, **settings: Any) -> Results:
    """Race on :data:`CASE` by a clock that only the providers move."""
    results = Results.create(tmp_path / "kernels.json", resume=True)
    settings = {"budget": Budget(0.0, least=3), **settings}
    Race(CpuTimer(clock), results, Settings(**settings), BANDWIDTH, clock).run(CASE)
    return Results.load(results.path)


def rows_by_name(results: Results, direction: str = "forward") -> dict[str, Row]:
    rows = results.find(direction=direction)
    assert len({row["provider"] for row in rows}) == len(rows)
    return {row["provider"]: row for row in rows}


def factory(function: Function) -> Any:
    return lambda: function


def test_known_times_give_known_figures(tmp_path: Path, clock: Clock, take: Take) -> None:
    times = {OURS: 2e-6, EAGER: 6e-6, "fast": 4e-6, "slow": 9e-6}
    functions = {name: clock.spend(seconds, double) for name, seconds in times.items()}
    take(**{n: f if n in (OURS, EAGER) else factory(f) for n, f in functions.items()})
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


def test_drift_and_noise_are_neither_ours_nor_the_peers(tmp_path: Path, take: Take) -> None:
    clock = Clock(drift=10.0, noise=[50.0 * (i % 17 == 0) for i in range(1000)])
    take(ours=clock.spend(2e-6, double), eager=clock.spend(3e-6, double))
    forward = rows_by_name(measure(tmp_path, clock, budget=Budget(0.0, least=25)))
    assert forward[OURS]["ratio_to_eager"] == pytest.approx(1.5, rel=0.01)


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


def test_faults_are_rows_and_are_not_timed(tmp_path: Path, clock: Clock, take: Take) -> None:
    calls: list[str] = []

    def wrong(x: Tensor) -> Tensor:
        calls.append("wrong")
        return x * 2.001

    take(
        ours=clock.spend(2e-6, double),
        eager=clock.spend(4e-6, double),
        wrong=factory(wrong),
        absent=absent,
        raising=factory(raising),
        backward=factory(FailsBackward.apply),
        gpu=Provider("gpu", factory(double), needs_gpu=True),
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
    for direction in DIRECTIONS:
        rows = rows_by_name(results, direction)
        assert set(rows) == set(expected)
        for name, (status, reason) in expected.items():
            assert rows[name]["status"] == status
            assert (rows[name]["reason"] or "").startswith(reason or "")
            timed = rows[name]["microseconds"] is not None
            assert timed == (status == "ok")
    assert len(calls) <= 2  # to check it and to see what it keeps: never on the clock
    assert rows_by_name(results)[OURS]["best_peer"] == EAGER  # the wrong one, though fast, is none


def test_failing_on_the_clock_is_a_row_too(tmp_path: Path, clock: Clock, take: Take) -> None:
    calls = 0

    def tires(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise MemoryError("no more")
        return double(x)

    take(ours=tires, eager=clock.spend(1e-6, double))
    rows = rows_by_name(measure(tmp_path, clock))
    assert (rows[OURS]["status"], rows[OURS]["reason"]) == ("failed", "MemoryError: no more")
    assert rows[OURS]["microseconds"] is None
    assert rows[EAGER]["status"] == "ok"


def test_a_reference_that_fails_leaves_nobody_unreported(
    tmp_path: Path, clock: Clock, take: Take
) -> None:
    take(eager=raising)
    rows = rows_by_name(measure(tmp_path, clock))
    assert {row["status"] for row in rows.values()} == {"failed"}
    assert rows[OURS]["reason"] == "its reference failed: RuntimeError: no kernel"


def test_a_reference_that_is_not_installed_is_no_failure_of_ours(
    tmp_path: Path, clock: Clock, take: Take
) -> None:
    take(eager=lambda x: absent()(x))
    rows = rows_by_name(measure(tmp_path, clock))
    assert {row["status"] for row in rows.values()} == {"skipped"}
    assert "No module named 'no_such_package'" in rows[OURS]["reason"]


def test_preparing_for_too_long_is_a_failure(tmp_path: Path, clock: Clock, take: Take) -> None:
    def slow() -> Function:
        signal.raise_signal(signal.SIGALRM)  # as if the time were up
        return double

    take(slow=slow, ours=clock.spend(1e-6, double), eager=clock.spend(1e-6, double))
    rows = rows_by_name(measure(tmp_path, clock, preparation_seconds=500))
    assert rows["slow"]["status"] == "failed"
    assert "took more than 500 s" in rows["slow"]["reason"]
    assert rows[OURS]["status"] == "ok"
    cut_short = measure(tmp_path / "late", clock, preparation_seconds=500, deadline=clock.now + 400)
    assert rows_by_name(cut_short)["slow"]["status"] == "timeout"


def test_no_time_left_is_a_row_that_a_resumed_run_measures(
    tmp_path: Path, clock: Clock, take: Take
) -> None:
    take(ours=clock.spend(1e-6, double), eager=clock.spend(1e-6, double))
    results = measure(tmp_path, clock, deadline=clock.now - 1)
    assert [row["status"] for row in results.rows] == ["timeout"] * 6
    results = measure(tmp_path, clock)
    assert [row["status"] for row in results.rows] == ["ok"] * 6


def test_a_resumed_run_with_more_peers_races_all_again(
    tmp_path: Path, clock: Clock, take: Take
) -> None:
    same = clock.spend(1e-6, double)
    take(ours=same, eager=same, a=factory(same), b=factory(same))
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
    clock: Clock,
    take: Take,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
    monkeypatch.setattr(torch.compiler, "reset", lambda: events.append("reset"))

    def make() -> Function:
        events.append("make")
        return clock.spend(1e-6, double)

    same = clock.spend(1e-6, double)
    take(ours=same, eager=same, c=make)
    measure(tmp_path, clock)
    assert events == ["reset", "make"]  # at a limit of recompilations it would run eagerly


def test_a_provider_that_breaks_the_gpu_is_named_and_left_out_when_resumed(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FragileTimer, "broken", False)

    def breaks(x: Tensor) -> Tensor:
        FragileTimer.broken = True
        raise RuntimeError("misaligned address")

    take(bad=factory(breaks))
    results = Results.create(tmp_path / "kernels.json")
    settings = Settings(budget=Budget(0.0, least=1))
    with pytest.raises(GpuLostError, match=r"bad broke the GPU's context: .*misaligned"):
        Race(FragileTimer(), results, settings, BANDWIDTH).run(CASE)
    assert [(row["provider"], row["status"]) for row in results.rows] == [("bad", "crashed")] * 3
    FragileTimer.broken = False  # another process
    Race(FragileTimer(), results, settings, BANDWIDTH).run(CASE)
    assert not FragileTimer.broken
    for direction in DIRECTIONS:
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


def test_copies_move_as_many_bytes_as_asked() -> None:
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


def test_gradients_of_a_layers_parameters_are_computed_too() -> None:
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    (call,) = make_calls(layer, [(x,)], [torch.ones(4, 2)], "both")
    result = call()
    assert isinstance(result, tuple)
    assert [gradient.shape for gradient in result] == [(4, 3), (2, 3), (2,)]


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
