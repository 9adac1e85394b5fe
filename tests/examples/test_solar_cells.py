"""The example of solar cells: what it measures, and that the advisor has nothing against it."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from examples import solar_cells
from lightning_practices.advisor import advise
from tests.examples.scripts import run_main

pytestmark = [
    pytest.mark.plain,
    # Lightning's, about what surgery.freeze does on purpose, and about data in memory
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solar_cells, "SIZE", 32)
    monkeypatch.setattr(solar_cells, "LABELS", 48)


def test_it_writes_its_figures_and_pictures(tmp_path: Path) -> None:
    run_main(solar_cells, "--seeds", 2, "--epochs", 1, "--out", tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    pretrained, scratch = summary["pretrained"][0], summary["from scratch"][0]
    assert summary["gain"][0] == pytest.approx(pretrained - scratch)
    committed = Path(solar_cells.__file__).with_suffix(".png").read_bytes()
    made = (tmp_path / "auroc.png").read_bytes()
    assert made[:24] == committed[:24]  # its width and height too; fewer curves make it smaller
    assert (tmp_path / "cells.png").stat().st_size > 20_000


def test_areas_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    defective = torch.randint(2, (200,))
    probabilities = (defective + torch.randn(200)).sigmoid()
    run = solar_cells.Run(probabilities, defective)
    assert run.auroc == pytest.approx(100 * roc_auc_score(defective, probabilities))


@pytest.mark.parametrize("method", solar_cells.METHODS)
def test_the_advisor_has_nothing_against_it(method: str) -> None:
    model = solar_cells.Defects(method == solar_cells.PRETRAINED, 1e-3)
    report = advise(model, solar_cells.make_data(0))
    assert not [str(finding) for finding in report.findings if finding.severity != "hint"]


def test_one_seed_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main(solar_cells, "--seeds", 1, "--out", tmp_path)
    assert "at least 2, for a spread, got 1" in capsys.readouterr().err
