"""The demo, run as a user runs it, with fewer seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_rel
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

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
    (ours, _), (plain, _) = summary["test_accuracy"], summary["plain_test_accuracy"]
    assert 0.9 < ours < 1
    assert summary["difference"][0] == pytest.approx(ours - plain)
    for name in ("test_accuracy", "plain_test_accuracy", "difference"):
        mean, half = summary[name]
        assert f"{mean:.4f} ± {half:.4f}" in result.stdout
    assert summary["fused_layers"] == [f"network.{i}" for i in (1, 3, 5, 7)]
    assert len(summary["best_steps"]) == summary["seeds"] == 2
    for best, stop in zip(summary["best_steps"], summary["stop_steps"], strict=True):
        assert 0 < best <= stop < summary["plain_stop_steps"][0]
    picture = (tmp_path / "digits" / "learning_curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_intervals_are_those_of_the_paired_t_test() -> None:
    plain, ours = [0.9, 0.92, 0.91, 0.95], [0.93, 0.94, 0.92, 0.95]
    runs = {
        name: [digits.Run(accuracy, [], 1) for accuracy in accuracies]
        for name, accuracies in zip(digits.TWINS, (plain, ours), strict=True)
    }
    mean, half = digits.difference(runs)
    expected = ttest_rel(ours, plain).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx(tuple(expected))


def images(loader: DataLoader[tuple[Tensor, ...]]) -> set[tuple[float, ...]]:
    assert isinstance(loader.dataset, TensorDataset)
    return {tuple(row.tolist()) for row in loader.dataset.tensors[0]}


def test_each_seed_has_digits_of_its_own_to_train_and_the_same_to_test() -> None:
    first, second = (
        [images(loader) for loader in loaders] for loaders in map(digits.make_loaders, (0, 1))
    )
    assert [len(part) for part in first] == [digits.TRAIN, digits.VALIDATION, digits.TEST]
    assert sum(map(len, first)) == len(set().union(*first))
    assert first[2] == second[2]
    assert len(first[0] & second[0]) < digits.TRAIN / 2


def test_too_few_seeds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_main(digits, "--seeds", 1)
    assert stopped.value.code == 2
    assert "at least 2, for a spread, got 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
