"""The ``kernels`` command: its plan, its exit, and what it leaves when it is stopped."""

import argparse
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.ops import OPS
from benchmarks.providers import AUTOTUNED
from benchmarks.race import Settings, reason_to_skip
from benchmarks.results import Results
from benchmarks.rows import EAGER, OURS
from benchmarks.timers import CpuTimer, make_timer
from lightning_practices.timing import Budget
from tests.benchmarks.clock import Clock
from tests.benchmarks.conftest import Take
from tests.benchmarks.fake_op import CASES, NAME, FragileTimer, double

ROOT = Path(__file__).parents[2]


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    kernels.add_arguments(parser)
    return parser.parse_args(argv)


GPU, CPU = torch.device("cuda"), torch.device("cpu")


def test_quick_is_a_part_of_full() -> None:
    quick = set(kernels.plan(parse(), GPU))
    full = set(kernels.plan(parse("--shapes", "full"), GPU))
    assert quick < full
    assert {case.dtype for case in quick} == {"bf16"}
    assert {case.dtype for case in full} == {"bf16", "fp16", "fp32"}
    assert {case.name for case in quick} == {name for name, op in OPS.items() if op.shapes}
    assert "channels_last" in {case.layout for case in full}
    keys = [tuple(case.key().values()) for case in full]
    assert len(set(keys)) == len(keys)
    few = kernels.plan(parse("--ops", "dropout", "--dtypes", "fp16"), GPU)
    assert {(case.name, case.dtype) for case in few} == {("dropout", "fp16")}


def test_shapes_are_small_on_the_cpu_only() -> None:
    for on_gpu, on_cpu in zip(
        kernels.plan(parse("--shapes", "full"), GPU),
        kernels.plan(parse("--shapes", "full"), CPU),
        strict=True,
    ):
        assert on_gpu.key() == on_cpu.key()
        assert on_gpu.shape in on_gpu.op.shapes
        assert math.prod(on_cpu.shape.dims) <= 1 << 16


def test_what_is_slow_is_left_out_of_a_quick_run_unless_named() -> None:
    known = {provider.name: provider for provider in OPS["layer_norm"].providers}
    tuned, eager = known[AUTOTUNED], known[EAGER]
    cases = [case for case in kernels.plan(parse(), GPU) if case.name == "layer_norm"]

    def skipped(settings: Settings, device: torch.device = GPU) -> int:
        return sum(reason_to_skip(case, tuned, device, settings) is not None for case in cases)

    assert 0 < len(cases) - skipped(Settings()) <= 2
    assert skipped(Settings(quick=False)) == 0
    assert skipped(Settings(peers=(AUTOTUNED,))) == 0
    assert skipped(Settings(quick=False), CPU) == len(cases)
    assert skipped(Settings(peers=(AUTOTUNED,)), CPU) == 0
    assert reason_to_skip(cases[0], eager, CPU, Settings()) is None


def run(out: Path, *more: str, clock: Clock | None = None) -> int:
    """Run the command on the fake op, by a clock that next to never moves."""
    clock = clock or Clock()
    arguments = parse("--ops", NAME, "--dtypes", "fp32", "--out", str(out), *more)
    return kernels.main(arguments, FragileTimer(clock), clock)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FragileTimer, "broken", False)
    monkeypatch.setattr(kernels, "Budget", lambda seconds: Budget(0.0, least=2))
    monkeypatch.setattr(kernels, "_CPU_COPIES", (1 << 12, 1 << 14))


def test_the_command_says_that_a_cpu_is_no_gpu(
    tmp_path: Path, take: Take, capsys: pytest.CaptureFixture[str]
) -> None:
    take()
    assert run(tmp_path) == 0
    said = capsys.readouterr()
    if not torch.cuda.is_available():
        assert "not figures of the kernels" in said.err
    results = Results.load(tmp_path / "kernels.json")
    assert f"{len(results.rows)} rows" in said.out
    copies = results.find(op="copy")
    assert len(copies) > 1
    best = max(copy["gbytes_per_s"] for copy in copies) * 1e9 / 1e9  # as it is handed on
    ours = results.find(provider=OURS)
    assert len(ours) == 3 * 3
    assert {row["copy_gbytes_per_s"] for row in ours} == {best}
    assert set(copies[0]) == set(ours[0])  # flat rows, all of the same fields


def test_copies_are_measured_at_several_sizes() -> None:
    ticks = itertools.count()
    rows = kernels.measure_copies(CpuTimer(lambda: 1e-3 * next(ticks)), Budget(0.0))
    assert len({row["bytes"] for row in rows}) == len(rows) > 1
    for row in rows:
        assert row["microseconds"] == pytest.approx(1e3 / 4)  # a tick for a lap of four copies
        assert row["gbytes_per_s"] == pytest.approx(row["bytes"] / row["microseconds"] / 1e3)
        assert row["spread"] == pytest.approx(0, abs=1e-5)


def test_the_command_fails_if_ours_is_wrong_and_not_if_a_peer_is(
    tmp_path: Path, take: Take, capsys: pytest.CaptureFixture[str]
) -> None:
    take(peer=lambda: torch.exp)
    assert run(tmp_path / "peer") == 0
    take(ours=torch.exp)
    assert run(tmp_path / "ours") == 1
    assert "ours is wrong: double s1 fp32 result: error" in capsys.readouterr().err


def test_the_minutes_end_a_run_and_a_resumed_one_goes_on(
    tmp_path: Path, take: Take, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    take(ours=clock.spend(1.0, double))
    assert run(tmp_path, "--minutes", "1", clock=clock) == 0
    assert "had no time left: --resume goes on" in capsys.readouterr().err
    results = Results.load(tmp_path / "kernels.json")
    assert [row["status"] for row in results.find(op=NAME, shape="s1")] == ["ok"] * 6
    assert [row["status"] for row in results.find(op=NAME, shape="s3")] == ["timeout"] * 6
    assert run(tmp_path, "--resume", clock=clock) == 0
    rows = Results.load(tmp_path / "kernels.json").find(op=NAME)
    assert [row["status"] for row in rows] == ["ok"] * 18


def test_an_interrupt_keeps_the_finished_rows(
    tmp_path: Path, take: Take, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(x: Tensor) -> Tensor:
        if x.shape[0] == 3:
            raise KeyboardInterrupt
        return double(x)

    take(ours=interrupted)
    assert run(tmp_path) == 130
    assert "--resume goes on" in capsys.readouterr().err
    kept = Results.load(tmp_path / "kernels.json").find(op=NAME)
    assert [row["shape"] for row in kept] == ["s1"] * 6 + ["s2"] * 6
    take()
    assert run(tmp_path, "--resume") == 0
    rows = Results.load(tmp_path / "kernels.json").find(op=NAME)
    assert rows[:12] == kept
    assert [row["shape"] for row in rows[12:]] == ["s3"] * 6


def test_a_gpu_lost_ends_the_run_with_what_it_has(
    tmp_path: Path, take: Take, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(x: Tensor) -> Tensor:
        if x.shape[0] == 2:
            FragileTimer.broken = True
            raise RuntimeError("misaligned address")
        return double(x)

    take(bad=lambda: breaks)
    assert run(tmp_path) == 1
    assert "--resume goes on without that provider" in capsys.readouterr().err
    rows = Results.load(tmp_path / "kernels.json").find(op=NAME)
    assert [row["status"] for row in rows] == ["ok"] * 9 + ["crashed"] * 3


def test_a_killed_run_is_resumed(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.fake_op", str(tmp_path)]
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "CUDA_VISIBLE_DEVICES": ""}
    path = tmp_path / "kernels.json"
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **paths}) as process:
        while process.poll() is None and (
            not path.exists() or len(Results.load(path).find(op=NAME)) < CASES
        ):
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = Results.load(path).find(op=NAME)
    assert len(kept) == CASES  # three of six shapes, of two providers
    environment = Results.load(path).environment
    monkeypatch.setattr("benchmarks.results.describe_environment", lambda: environment)
    take()
    assert run(tmp_path, "--shapes", "full", "--resume") == 0
    rows = Results.load(path).find(op=NAME)
    assert rows[: len(kept)] == kept  # not measured again
    identities = {(r["shape"], r["direction"], r["provider"]) for r in rows}
    assert len(rows) == len(identities) == 2 * CASES
    assert {r["status"] for r in rows} == {"ok"}


def test_the_real_ops_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CPU_ELEMENTS", 1 << 12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("benchmarks.report.write", lambda results, out: [])
    ops = ("layer_norm", "dropout", "drop_block2d", "clip_grad_adaptive_")
    arguments = parse("--ops", *ops, "--peers", "eager", "liger-kernel", "--out", str(tmp_path))
    assert kernels.main(arguments) == 0
    results = Results.load(tmp_path / "kernels.json")
    for name in ops:
        op = OPS[name]
        quick = [shape for shape in op.shapes if shape.quick]
        rows = results.find(op=name, provider=OURS)
        assert len(rows) == sum(len(shape.layouts) for shape in quick) * len(op.directions)
        assert {row["status"] for row in rows} <= {"ok"}, name
        for row in rows:
            assert row["microseconds"] > 0
            assert row["ratio_to_eager"] > 0
    peers = {row["shape"] for row in results.find(op="layer_norm", provider="liger-kernel")}
    assert peers == {shape.name for shape in OPS["layer_norm"].shapes if shape.quick}


@pytest.mark.gpu
def test_quick_dropout_on_a_gpu(tmp_path: Path) -> None:
    arguments: Any = parse("--ops", "dropout", "--out", str(tmp_path))
    assert kernels.main(arguments, make_timer()) == 0
    rows = Results.load(tmp_path / "kernels.json").find(op="dropout", provider=OURS)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["timer"] for row in rows} == {"events"}
    assert {row["saved_bytes"] for row in rows} == {0}
