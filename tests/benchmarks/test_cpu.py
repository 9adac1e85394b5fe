import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import lightning_kernels
from benchmarks import cpu
from benchmarks.cpu import OPS
from benchmarks.cpu_op import Candidates, Op, Shape
from benchmarks.pairs import compare
from benchmarks.results import Results, Row
from lightning_practices import nn


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "compare", functools.partial(compare, rounds=5, block_seconds=1e-3))


def spin(count: int) -> None:
    for _ in range(count):
        pass


def spinning(ours: int, peer: int, **options: Any) -> Op:
    def make(shape: Shape, dtype: torch.dtype) -> Candidates:
        return Candidates(lambda: spin(ours), lambda: spin(peer), ())

    return Op("a peer", make, **{"shapes": ((2, 3),), "directions": ("forward",), **options})


def broken(shape: Shape, dtype: torch.dtype) -> Candidates:
    def ours() -> None:
        raise ArithmeticError("out of numbers")

    return Candidates(ours, lambda: None, ())


def run(out: Path, *options: str) -> tuple[int, list[Row]]:
    parser = argparse.ArgumentParser()
    cpu.add_arguments(parser)
    status = cpu.main(parser.parse_args(["--out", str(out), *options]))
    return status, json.loads((out / "cpu.json").read_text())["rows"]


def test_twice_as_slow_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OPS, "slow", spinning(ours=20_000, peer=10_000))
    monkeypatch.setitem(OPS, "fast", spinning(ours=10_000, peer=20_000))
    status, rows = run(tmp_path, "--ops", "slow", "fast")
    assert status == 0  # whatever the figures
    assert [row["ratio"] for row in rows] == pytest.approx([2, 2, 0.5, 0.5], rel=0.15)
    assert [row["above_goal"] for row in rows] == [True, True, False, False]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"] * 2
    for row in rows:
        assert row["microseconds"] / row["peer_microseconds"] == pytest.approx(
            row["ratio"], rel=0.15
        )
        assert row.items() >= {
            "peer": "a peer", "shape": "2x3", "direction": "forward", "status": "ok", "threads": 1
        }.items()  # fmt: skip
    printed = capsys.readouterr().out
    assert "slow against a peer, 2x3 float32 forward" in printed
    assert "fast against" not in printed
    assert "2 of them within the goal of 1.05" in printed
    assert "slow" in (tmp_path / "cpu.md").read_text()


def test_one_that_raises_is_a_row_and_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OPS, "broken", Op("a peer", broken, ((1,),), ("forward",)))
    monkeypatch.setitem(OPS, "fine", spinning(1000, 1000))
    status, rows = run(tmp_path, "--ops", "broken", "fine")
    assert status == 1
    assert [row["status"] for row in rows] == ["failed", "failed", "ok", "ok"]
    assert rows[0]["reason"] == "ArithmeticError: out of numbers"
    assert "out of numbers" in capsys.readouterr().out
    assert run(tmp_path, "--ops", "broken", "fine", "--resume")[0] == 1


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_measured_in_both_directions(op: str, tmp_path: Path) -> None:
    results = Results.create(tmp_path / "cpu.json")
    smallest = [case for case in cpu.cases([op]) if math.prod(case.shape) < 1000]
    cpu.measure(results, smallest, Console(quiet=True))
    assert results.rows
    for row in results.rows:
        assert row["status"] == "ok", row
        assert 0.1 < row["ratio"] < 10
        assert math.isfinite(row["spread"])
        assert row["microseconds"] > 0
    if OPS[op].directions == ("forward", "both"):
        forward, both = (
            sum(row["microseconds"] for row in results.find(direction=direction))
            for direction in ("forward", "both")
        )
        assert both > forward


@pytest.mark.parametrize(
    "op",
    [
        "layer_norm",
        "nn.LayerNorm",
        "dropout",
        "dropout1d",
        "feature_alpha_dropout",
        "dropout_activation",
        "nn.Dropout",
        "nn.BatchNorm1d",
        "nn.SyncBatchNorm",
    ],
)
def test_both_compute_the_same(op: str) -> None:
    torch.manual_seed(0)
    pair = OPS[op].make((4, 16), torch.float32)
    values = []
    for call in (pair.ours, pair.peer):
        torch.manual_seed(1)
        values.append(call())
    assert values[0].shape == (4, 16)
    assert torch.equal(*values)


def test_both_passes_are_differentiated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backwards = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, who: str) -> Tensor:
            ctx.who = who
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            backwards.append(ctx.who)
            return grad * 2, None

    def make(shape: Shape, dtype: torch.dtype) -> Candidates:
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        ours, peer = (functools.partial(Counted.apply, x, who) for who in ("ours", "peer"))
        return Candidates(ours, peer, (x,))

    monkeypatch.setitem(OPS, "counted", Op("a peer", make, shapes=((3,),)))
    results = Results.create(tmp_path / "cpu.json")
    forward, both = list(cpu.cases(["counted"]))[:2]
    cpu.measure(results, [forward], Console(quiet=True))
    assert not backwards
    cpu.measure(results, [both], Console(quiet=True))
    assert abs(backwards.count("ours") - backwards.count("peer")) <= 1
    assert len(backwards) > 40  # 5 rounds of 4 blocks


_TYPES = {"Activation", "Autocast", "CompiledNorms", "GradScale", "NonFinite", "Route"}
_NO_OPS = {*_TYPES, "route", "set_compiled_norms"}


def test_every_public_function_and_layer_is_there() -> None:
    functions = set(lightning_kernels.__all__) - _NO_OPS
    assert functions <= OPS.keys()
    alone = {"DropCluster2d", "fit_drop_clusters"}  # which nobody else has
    alone |= {
        "LabelSmoothingBCEWithLogitsLoss",
        "LabelSmoothingCrossEntropyLoss",
    }  # torch's own functions
    assert {f"nn.{name}" for name in set(nn.__all__) - alone} <= OPS.keys()


def test_resumed_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []

    def make(shape: Shape, dtype: torch.dtype) -> Candidates:
        made.append(dtype)
        if len(made) == 2:
            raise KeyboardInterrupt
        return Candidates(lambda: spin(1000), lambda: spin(1000), ())

    one = Op("a peer", make, shapes=((1,),), directions=("forward",))
    monkeypatch.setitem(OPS, "one", one)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--ops", "one")
    kept = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["dtype"] for row in kept] == ["float32"]
    status, rows = run(tmp_path, "--ops", "one", "--resume")
    assert status == 0
    assert rows[:1] == kept
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert made == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_interpreted_kernels_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_kernels, "route", lambda x: "interpreter")
    arguments = argparse.Namespace(out=tmp_path, ops=list(OPS), resume=False)
    assert cpu.main(arguments) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
    assert not (tmp_path / "cpu.json").exists()


def test_figures_do_not_change_the_callers_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    case = next(cpu.cases(["dropout"]))
    cpu.measure(Results.create(tmp_path / "cpu.json"), [case], Console(quiet=True))
    assert torch.equal(torch.rand(1), expected)
