"""The curves of a fit that overfits, drawn as a user draws them, and what is on them."""

import shutil
from pathlib import Path

import pytest

from examples import curves as example
from lightning_practices.callbacks import LearningCurves
from tests.examples.scripts import assert_like_the_committed, run_main

Drawn = tuple[dict[str, LearningCurves], Path]  # and the folder with the pictures
STEPS = example.EPOCHS * example.TRAIN // example.BATCH_SIZE


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("curves")
    return example.run(folder), folder


def values_of(curves: LearningCurves, name: str) -> list[float]:
    return [value for _, value in curves.history[name]]


# The fit is the tests' own: their filters hold for it, the script's don't.
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_the_plain_twin_overfits(drawn: Drawn) -> None:
    plain = drawn[0]["Plain"]
    assert plain.best_step is not None
    assert plain.best_score is not None
    assert plain.best_step < STEPS / 2
    assert values_of(plain, "val_loss")[-1] > 1.1 * plain.best_score
    train = values_of(plain, "train_loss")
    assert max(train[-20:]) < min(train[plain.best_step - 20 : plain.best_step])
    assert max(train[-20:]) < 0.1  # with the wrong labels, which are learnt by heart
    assert values_of(plain, "lr-Adam") == [example.LEARNING_RATE] * len(values_of(plain, "lr-Adam"))


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_the_other_does_not(drawn: Drawn) -> None:
    plain, other = drawn[0]["Plain"], drawn[0]["Regularised"]
    assert plain.best_score is not None
    assert other.best_score is not None
    assert other.best_score < plain.best_score
    assert values_of(other, "val_loss")[-1] < 1.02 * other.best_score
    # The wrong labels are not learnt by heart.
    assert min(values_of(other, "train_loss")) > 0.2
    rates = dict(other.history["lr-Adam"])
    assert max(rates, key=lambda step: rates[step]) == example.WARMUP
    past = STEPS - example.WARMUP
    expected = example.LEARNING_RATE * 0.1 ** (past / example.SCALE)
    assert rates[STEPS] == pytest.approx(expected)


def test_the_picture_is_drawn_where_it_is_told(
    drawn: Drawn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "curves.png"
    curves, folder = drawn

    def run(to: Path) -> dict[str, LearningCurves]:
        shutil.copytree(folder, to, dirs_exist_ok=True)
        return curves

    monkeypatch.setattr(example, "run", run)
    run_main(example, "--out", out)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "Plain:", "Regularised:", "Wrote"
    ]  # fmt: skip
    assert list(out.parent.iterdir()) == [out]
    assert_like_the_committed(out, example)
