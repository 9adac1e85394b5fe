"""The curves of a fit that overfits, drawn as a user draws them, and what is on them."""

import subprocess
import sys
from pathlib import Path

import pytest

from examples import curves as example
from lightning_practices.callbacks import LearningCurves
from tests.processes import DEADLINE

SCRIPT = Path(example.__file__)
STEPS = example.EPOCHS * example.TRAIN // example.BATCH_SIZE


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LearningCurves]:
    return example.run(tmp_path_factory.mktemp("curves"))


def values_of(curves: LearningCurves, name: str) -> list[float]:
    return [value for _, value in curves.history[name]]


# The fit is the tests' own: their filters hold for it, the script's don't.
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_the_plain_twin_overfits(drawn: dict[str, LearningCurves]) -> None:
    plain = drawn["PlainDigits"]
    assert plain.best_step is not None
    assert plain.best_score is not None
    assert plain.best_step < STEPS / 2
    assert values_of(plain, "val_loss")[-1] > 1.1 * plain.best_score
    train = values_of(plain, "train_loss")
    assert max(train[-20:]) < min(train[plain.best_step - 20 : plain.best_step])
    assert max(values_of(plain, "train_accuracy")) == 1
    assert values_of(plain, "lr-Adam") == [example.LEARNING_RATE] * len(values_of(plain, "lr-Adam"))


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_the_other_does_not(drawn: dict[str, LearningCurves]) -> None:
    plain, other = drawn["PlainDigits"], drawn["Digits"]
    assert plain.best_score is not None
    assert other.best_score is not None
    assert other.best_score < plain.best_score
    assert values_of(other, "val_loss")[-1] < 1.02 * other.best_score
    # The wrong labels are not learnt by heart.
    assert values_of(other, "train_accuracy")[-1] < 1 - example.WRONG / 4
    rates = dict(other.history["lr-Adam"])
    assert max(rates, key=lambda step: rates[step]) == example.WARMUP
    past = STEPS - example.WARMUP
    expected = example.LEARNING_RATE * 0.1 ** (past / example.SCALE)
    assert rates[STEPS] == pytest.approx(expected)


def test_the_picture_is_drawn_where_it_is_told(tmp_path: Path) -> None:
    out = tmp_path / "new" / "curves.png"
    command: list[str | Path] = [sys.executable, SCRIPT, "--out", out]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "PlainDigits:", "Digits:", "Wrote"
    ]  # fmt: skip
    assert list(out.parent.iterdir()) == [out]
    picture = out.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 50_000 < len(picture) < 400_000
    committed = SCRIPT.with_suffix(".png").read_bytes()
    assert committed[16:24] == picture[16:24]  # width and height
