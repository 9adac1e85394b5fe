"""The ``cpu`` command: planted costs by a scripted clock, and each real op computed."""

import argparse
import functools
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_kernels
from benchmarks import cpu
from benchmarks.layers import LAYERS
from benchmarks.ops import OPS, Op
from benchmarks.rows import Row
from lightning_practices import nn
from lightning_practices.timing import Budget
from tests.benchmarks.clock import Clock

FORWARD: dict[str, Any] = {"cpu": ((2, 3),), "directions": ("forward",)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "BUDGET", Budget(0.0, least=5))
    monkeypatch.setattr(cpu, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(cpu, "THREADS", (1,))
    monkeypatch.setattr("benchmarks.report.write", lambda results, out: [])


def run(out: Path, *options: str, clock: Clock | None = None) -> tuple[int, list[Row]]:
    parser = argparse.ArgumentParser()
    cpu.add_arguments(parser)
    arguments = parser.parse_args(["--out", str(out), *options])
    status = cpu.main(arguments, clock or Clock())
    return status, json.loads((out / "cpu.json").read_text())["rows"]


def spending(clock: Clock, ours: float, peer: float) -> Op:
    return Op(clock.spend(ours), clock.spend(peer), **FORWARD)


@pytest.mark.parametrize("block_seconds", [0.0, 4e-3])
def test_twice_as_slow_is_said_to_be(
    block_seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock(drift=0.1)
    monkeypatch.setattr(cpu, "BLOCK_SECONDS", block_seconds)
    monkeypatch.setitem(OPS, "slow", spending(clock, ours=2e-5, peer=1e-5))
    monkeypatch.setitem(OPS, "fast", spending(clock, ours=1e-5, peer=2e-5))
    status, rows = run(tmp_path, "--ops", "slow", "fast", clock=clock)
    assert status == 0  # whatever the figures
    assert [row["ratio"] for row in rows] == pytest.approx([2, 2, 0.5, 0.5], rel=0.01)
    assert [row["verdict"] for row in rows] == ["above", "above", "within", "within"]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"] * 2
    for row in rows:
        assert row["microseconds"] == pytest.approx(10 * max(row["ratio"], 1), rel=0.1)
        assert row["peer_microseconds"] == pytest.approx(10 / min(row["ratio"], 1), rel=0.1)
        assert row.items() >= {
            "peer": "eager", "shape": "2x3", "direction": "forward", "status": "ok",
            "threads": 1,
        }.items()  # fmt: skip
    printed = capsys.readouterr().out
    table = [line.strip("| ").split(" | ") for line in printed.splitlines() if "2x3" in line]
    case = ["eager", "2x3", "float32", "forward", "1"]
    assert [line[:6] for line in table][::2] == [["slow", *case], ["fast", *case]]
    assert [line[-3] for line in table] == [f"{row['ratio']:.3f}" for row in rows]
    assert [line[-2] for line in table] == [f"{row['spread']:.3f}" for row in rows]
    assert [line[-1] for line in table] == ["above", "above", "within", "within"]
    assert "2 of them within the goal of 1.05" in printed
    assert "2 above it. For 0 it can't be told" in printed


def test_noise_that_reaches_the_goal_hides_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = {"op": "noisy", "peer": "eager", "shape": "2", "dtype": "float32", "direction": "both"}
    noisy = {**key, "threads": 2, "ratio": 1.2, "spread": 0.2, "microseconds": 9.0}
    clear = {**key, "op": "clear", "ratio": 1.2, "spread": 0.1, "microseconds": 9.0}
    cpu._print_verdict([noisy, clear])
    _, _, first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("| noisy | eager | 2 | float32 | both | 2 |")
    assert first.endswith("| 1.200 | 0.200 | can't tell |")
    assert second.endswith("| 1.200 | 0.100 | above |")
    assert "0 of them within the goal" in last
    assert "1 above it. For 1 it can't be told" in last


def test_one_thread_and_two_are_measured_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "THREADS", (1, 2))
    clock, before = Clock(), torch.get_num_threads()

    def on_each_thread(x: Tensor) -> Tensor:
        clock.pass_by(2e-6 / torch.get_num_threads())
        return x

    monkeypatch.setitem(OPS, "halved", Op(on_each_thread, clock.spend(1e-6), **FORWARD))
    _, rows = run(tmp_path, "--ops", "halved", clock=clock)
    assert [row["threads"] for row in rows] == [1, 2] * 2
    assert [row["ratio"] for row in rows] == pytest.approx([2, 1] * 2, rel=0.01)
    assert torch.get_num_threads() == before
    printed = capsys.readouterr().out
    assert printed.count("| forward | 1 |") == printed.count("| forward | 2 |") == 2


def test_threads_are_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: Tensor) -> Tensor:
        raise ArithmeticError

    monkeypatch.setitem(OPS, "broken", Op(broken, torch.sum, **FORWARD))
    before = torch.get_num_threads()
    ((key, dims), _) = cpu.cases(["broken"])
    assert cpu.measure({**key, "threads": before + 1}, dims)["status"] == "failed"
    assert torch.get_num_threads() == before


def test_the_ratio_is_the_median_of_the_rounds_and_noise_is_its_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "BUDGET", Budget(math.inf, most=5))
    before = [0.0] * 8  # two preparations of two calls, and the first round
    rounds = [0.0] * 4, [1.0, 0.0, 0.0, 1.0], [0.0] * 4, [3.0, 0.0, 0.0, 3.0], [0.0] * 4
    clock = Clock(noise=[*before, *itertools.chain(*rounds)])
    monkeypatch.setitem(OPS, "noisy", spending(clock, ours=3e-6, peer=2e-6))
    ((key, dims), _) = cpu.cases(["noisy"])
    row = cpu.measure(key, dims, clock)
    assert row["ratio"] == pytest.approx(1.5)
    assert row["spread"] == pytest.approx(1.5)  # of 1.5, 1.5, 1.5, 3 and 6


def test_one_that_raises_is_a_row_and_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(x: Tensor) -> Tensor:
        raise ArithmeticError("out of numbers")

    monkeypatch.setitem(OPS, "broken", Op(broken, torch.sum, **FORWARD))
    clock = Clock()
    monkeypatch.setitem(OPS, "fine", spending(clock, 1e-6, 1e-6))
    status, rows = run(tmp_path, "--ops", "broken", "fine", clock=clock)
    assert status == 1
    assert [row["status"] for row in rows] == ["failed", "failed", "ok", "ok"]
    assert rows[0]["reason"] == "ArithmeticError: out of numbers"
    assert "out of numbers" in capsys.readouterr().out
    assert run(tmp_path, "--ops", "broken", "fine", "--resume")[0] == 1


@pytest.mark.parametrize("name", cpu.names())
def test_every_op_is_measured_in_both_directions(name: str) -> None:
    smallest = min(cpu.shapes_of(name), key=math.prod)
    todo = [key for key, dims in cpu.cases([name]) if dims == smallest]
    assert len(todo) == 2 * (1 if "clip" in name else 2)
    for key in todo:
        row = cpu.measure(key, smallest)
        assert row["status"] == "ok", row
        assert row["microseconds"] > 0


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_peers_compute_the_same(name: str) -> None:
    layer = LAYERS[name]
    dims = layer.cpu[0]
    torch.manual_seed(0)
    ours, peer = layer.make(dims)
    ours.load_state_dict(peer.state_dict())
    inputs = [torch.randn(dims) for _ in range(layer.inputs)]
    results = []
    for module in (ours, peer):
        torch.manual_seed(1)  # on the CPU ours draws the same masks as the peer
        results.append(module(*inputs))
    assert results[0].shape == results[1].shape
    if "DropBlock" not in name:  # whose masks are drawn in another order
        torch.testing.assert_close(*results)


def test_both_passes_are_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, who: str, x: Tensor) -> Tensor:
            ctx.who = who
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
            backwards.append(ctx.who)
            return None, grad * 2

    ours, peer = (functools.partial(Counted.apply, who) for who in ("ours", "peer"))
    monkeypatch.setitem(OPS, "counted", Op(ours, peer, cpu=((3,),)))
    (forward, dims), (both, _), *_ = cpu.cases(["counted"])
    cpu.measure(forward, dims)
    assert not backwards
    cpu.measure(both, dims)
    assert backwards.count("ours") == backwards.count("peer")
    assert len(backwards) >= 5 * 4  # rounds of four blocks


_TYPES = {
    "Activation",
    "Autocast",
    "CompiledNorms",
    "GradScale",
    "KernelPolicy",
    "NonFinite",
    "Route",
}
_SETTINGS = {"compiled_norms", "kernel_policy"}
_NO_OPS = {
    *_TYPES, "keep_kernels", "route", "run_all_kernels",
    *(f"{verb}_{name}" for name in _SETTINGS for verb in ("get", "set")),
}  # fmt: skip


def test_every_public_function_and_layer_is_there() -> None:
    functions = set(lightning_kernels.__all__) - _NO_OPS
    assert functions <= set(cpu.names())
    kinds = {name: getattr(nn, name) for name in nn.__all__}
    layers = {n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, torch.nn.Module)}
    alone = {"DropCluster2d", "ScheduledRate"}  # nobody else has it; a base class
    losses = {name for name in layers if name.endswith("Loss")}  # torch's own functions
    assert {f"nn.{name}" for name in layers - alone - losses} == set(LAYERS)


def test_resumed_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def interrupted(x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:
            raise KeyboardInterrupt
        clock.pass_by(1e-6)
        return x

    def op(ours: Callable[..., Any]) -> None:
        monkeypatch.setitem(OPS, "one", Op(ours, clock.spend(1e-6), **FORWARD))

    op(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--ops", "one", clock=clock)
    kept = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["dtype"] for row in kept] == ["float32"]
    op(clock.spend(1e-6))
    status, rows = run(tmp_path, "--ops", "one", "--resume", clock=clock)
    assert status == 0
    assert rows[:1] == kept
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]


def test_interpreted_kernels_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_kernels, "route", lambda x: "interpreter")
    arguments = argparse.Namespace(out=tmp_path, ops=cpu.names(), resume=False)
    assert cpu.main(arguments) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
    assert not (tmp_path / "cpu.json").exists()


def test_figures_do_not_change_the_callers_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    key, dims = next(cpu.cases(["dropout"]))
    cpu.measure(key, dims)
    assert torch.equal(torch.rand(1), expected)
