"""The comparison of ensembles, made as a user makes it, with shorter training."""

from pathlib import Path

import pytest

from examples import ensemble
from tests.examples.scripts import assert_like_the_committed, run_main


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "EPOCHS", 4)
    monkeypatch.setattr(ensemble, "STEPS", 4 * ensemble.TRAIN // ensemble.BATCH_SIZE)


def test_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[ensemble.Scores] = []

    def compare(seed: int) -> ensemble.Scores:
        runs.append(made(seed))
        return runs[-1]

    made = ensemble.compare
    monkeypatch.setattr(ensemble, "compare", compare)
    out = tmp_path / "new" / "ensemble.png"
    run_main(ensemble, "--repetitions", 2, "--out", out)
    assert len(runs) == 2
    for run in runs:
        names = ["one network", "the last snapshot", "5 snapshots of one training"]
        assert list(run) == [*names, "5 networks, votes counted", "5 networks, averaged"]
        assert all(0.3 < accuracy < 1 for accuracy, _ in run.values())
        votes, mean = run["5 networks, votes counted"], run["5 networks, averaged"]
        assert votes[1] != votes[1]  # nan
        # The logarithm is concave: of averaged probabilities the loss is less than the mean loss.
        assert 0 < mean[1] < run["one network"][1]
        assert run["5 snapshots of one training"][1] != run["the last snapshot"][1]
    assert runs[0] != runs[1]
    printed = capsys.readouterr().out
    for name in runs[0]:
        assert name in printed
        assert ensemble.spread([100 * run[name][0] for run in runs], 2) in printed
    assert f"Wrote {out}" in printed.replace("\n", "")
    assert_like_the_committed(out, ensemble)


def test_too_few_repetitions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main(ensemble, "--repetitions", 1)
    assert "at least 2, for a spread, got 1" in capsys.readouterr().err
