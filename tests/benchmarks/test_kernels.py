"""The ``kernels`` command: its plan, its exit, and what it leaves when it is stopped."""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.providers import AUTOTUNED, EAGER, OURS, PROVIDERS
from benchmarks.race import Settings, reason_to_skip
from benchmarks.results import Results, Row
from benchmarks.shapes import OPS
from tests.benchmarks import fake_op
from tests.benchmarks.fake_op import NAME, FragileTimer, double, provider

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {  # one thread: two that wait for a busy machine's cores take far longer
    **os.environ,
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    "OMP_NUM_THREADS": "1",
}


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
    assert {case.name for case in quick} == set(OPS)
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
    tuned = next(p for p in PROVIDERS if p.name == AUTOTUNED and p.op == "layer_norm")
    cases = [case for case in kernels.plan(parse(), GPU) if case.name == "layer_norm"]

    def skipped(settings: Settings, device: torch.device = GPU) -> int:
        return sum(reason_to_skip(case, tuned, device, settings) is not None for case in cases)

    assert 0 < len(cases) - skipped(Settings()) <= 2
    assert skipped(Settings(quick=False)) == 0
    assert skipped(Settings(peers=(AUTOTUNED,))) == 0
    assert skipped(Settings(quick=False), CPU) == len(cases)
    assert skipped(Settings(peers=(AUTOTUNED,)), CPU) == 0
    eager = next(p for p in PROVIDERS if p.name == EAGER)
    assert reason_to_skip(cases[0], eager, CPU, Settings()) is None


def arguments_for(out: Path, *more: str) -> argparse.Namespace:
    common = ("--ops", NAME, "--seconds", "0.001", "--dtypes", "fp32", "--out", str(out))
    return parse(*common, *more)


@pytest.mark.usefixtures("with_fake_op")
def test_the_command_says_that_a_cpu_is_no_gpu(
    tmp_path: Path, take: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    take(*(provider(name, lambda: double) for name in (OURS, EAGER)))
    assert kernels.main(arguments_for(tmp_path)) == 0
    said = capsys.readouterr()
    if not torch.cuda.is_available():
        assert "not a figure of the kernels" in said.err
    results = Results.load(tmp_path / "kernels.json")
    assert f"{len(results.rows)} rows" in said.out
    copies = results.find(op="copy")
    assert len(copies) > 1
    best = max(copy["gbytes_per_s"] for copy in copies)
    ours = results.find(provider=OURS)
    assert len(ours) == 3 * 3
    assert {row["copy_gbytes_per_s"] for row in ours} == {best}
    assert set(copies[0]) == set(ours[0])  # flat rows, all of the same fields


@pytest.mark.usefixtures("with_fake_op")
def test_the_command_fails_if_ours_is_wrong_and_not_if_a_peer_is(
    tmp_path: Path, take: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fine, eager = (provider(name, lambda: double) for name in (OURS, EAGER))
    take(fine, eager, provider("peer", lambda: torch.exp))
    assert kernels.main(arguments_for(tmp_path / "peer")) == 0
    take(provider(OURS, lambda: torch.exp), eager)
    assert kernels.main(arguments_for(tmp_path / "ours")) == 1
    assert "ours is wrong: double s1 fp32 result: error" in capsys.readouterr().err


@pytest.mark.usefixtures("with_fake_op")
def test_an_interrupt_keeps_what_is_finished(
    tmp_path: Path, take: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(x: Tensor) -> Tensor:
        if x.shape[0] == 3:
            raise KeyboardInterrupt
        return double(x)

    take(provider(OURS, lambda: interrupted), provider(EAGER, lambda: double))
    assert kernels.main(arguments_for(tmp_path)) == 130
    assert "--resume goes on" in capsys.readouterr().err
    kept = Results.load(tmp_path / "kernels.json").find(op=NAME)
    assert [row["shape"] for row in kept] == ["s1"] * 6 + ["s2"] * 6
    take(*(provider(name, lambda: double) for name in (OURS, EAGER)))
    assert kernels.main(arguments_for(tmp_path, "--resume")) == 0
    rows = Results.load(tmp_path / "kernels.json").find(op=NAME)
    assert rows[:12] == kept
    assert [row["shape"] for row in rows[12:]] == ["s3"] * 6


@pytest.mark.usefixtures("with_fake_op")
def test_a_gpu_lost_ends_the_run_with_what_it_has(
    tmp_path: Path,
    take: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FragileTimer, "broken", False)
    monkeypatch.setattr(kernels, "make_timer", FragileTimer)

    def breaks(x: Tensor) -> Tensor:
        if x.shape[0] == 2:
            FragileTimer.broken = True
            raise RuntimeError("misaligned address")
        return double(x)

    take(*(provider(n, lambda: double) for n in (OURS, EAGER)), provider("bad", lambda: breaks))
    assert kernels.main(arguments_for(tmp_path)) == 1
    assert "--resume goes on without that provider" in capsys.readouterr().err
    rows = Results.load(tmp_path / "kernels.json").find(op=NAME)
    assert [row["status"] for row in rows] == ["ok"] * 9 + ["crashed"] * 3


def finished(path: Path) -> list[Row]:
    """Return the rows of the fake op on disk: the file is whole whenever it is there."""
    if not path.exists():
        return []
    return [row for row in json.loads(path.read_text())["rows"] if row["op"] == NAME]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_resumed(tmp_path: Path, blow: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.fake_op", "--out", str(tmp_path)]
    path = tmp_path / "kernels.json"
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    pipes: dict[str, Any] = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        deadline = time.monotonic() + 60
        while len(finished(path)) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(blow)
        _, said = process.communicate(timeout=30)
    assert process.returncode == (130 if blow == signal.SIGINT else -signal.SIGKILL), said
    kept = finished(path)
    assert 6 <= len(kept) < 2 * fake_op.CASES
    resumed = subprocess.run([*command, "--resume"], check=False, timeout=60, **pipes)
    assert resumed.returncode == 0, resumed.stderr
    rows = finished(path)
    assert rows[: len(kept)] == kept  # not measured again
    identities = {(r["shape"], r["direction"], r["provider"]) for r in rows}
    assert len(rows) == len(identities) == 2 * fake_op.CASES
    assert {r["status"] for r in rows} == {"ok"}


def run_quick(tmp_path: Path, *more: str) -> Results:
    """Run the command as a user does, with the report."""
    command = [sys.executable, "-m", "benchmarks", "kernels", "--out", str(tmp_path), *more]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernels.md").exists()
    return Results.load(tmp_path / "kernels.json")


def test_the_real_ops_from_end_to_end(tmp_path: Path) -> None:
    results = run_quick(tmp_path, "--seconds", "0.001", "--peers", "eager", "liger-kernel")
    for name in ("layer_norm", "dropout"):
        quick = [shape for shape in OPS[name].shapes if shape.quick]
        rows = results.find(op=name, provider=OURS)
        assert len(rows) == len(quick) * 3
        assert {row["status"] for row in rows} == {"ok"}
        for row in rows:
            assert row["microseconds"] > 0
            assert row["ratio_to_eager"] > 0
    peers = {row["shape"] for row in results.find(op="layer_norm", provider="liger-kernel")}
    assert peers == {shape.name for shape in OPS["layer_norm"].shapes if shape.quick}


@pytest.mark.gpu
def test_quick_dropout_on_a_gpu(tmp_path: Path) -> None:
    results = run_quick(tmp_path, "--ops", "dropout", "--shapes", "quick")
    rows = results.find(op="dropout", provider=OURS)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["timer"] for row in rows} == {"events"}
    large = [r for r in rows if r["shape"] == "Llama 8192" and r["direction"] != "both"]
    for found in large:
        assert 20 < found["percent_of_floor"] < 115
        assert found["host_us"] < 500
        assert found["saved_bytes"] == 0
    assert {r["bound"] for r in large} == {"memory"}
