"""The demo, run as a user runs it, with fewer seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples import digits
from tests.examples.scripts import run_main
from tests.processes import DEADLINE


def test_the_demo_measures_what_it_says(tmp_path: Path) -> None:
    command: list[str | Path] = [
        sys.executable,
        digits.__file__,
        "--seeds",
        "2",
        "--out",
        tmp_path / "digits",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    summary = json.loads((tmp_path / "digits" / "summary.json").read_text())
    assert 0.97 <= summary["test_accuracy"] <= 1
    assert f"{summary['test_accuracy']:.4f}" in result.stdout
    assert f"{summary['plain_test_accuracy']:.4f}" in result.stdout
    assert summary["fused_layers"] == [f"network.{i}" for i in (1, 3, 5, 7)]
    assert len(summary["best_steps"]) == summary["seeds"] == 2
    for best, stop in zip(summary["best_steps"], summary["stop_steps"], strict=True):
        assert 0 < best <= stop < summary["plain_stop_steps"][0]
    picture = (tmp_path / "digits" / "learning_curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_too_few_seeds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_main(digits, "--seeds", 1)
    assert stopped.value.code == 2
    assert "at least 2, for a spread, got 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
