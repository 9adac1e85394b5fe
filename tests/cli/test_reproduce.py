"""``lightning-practices reproduce``."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lightning_practices.cli import main

pytestmark = pytest.mark.plain

Output = pytest.CaptureFixture[str]


def test_a_table_is_printed_drawn_and_saved_and_not_made_again(
    tmp_path: Path, capsys: Output
) -> None:
    arguments = ["reproduce", "penalties", "--tiny", "--seeds", "2", "--out", str(tmp_path)]
    assert main([*arguments, "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Penalties of large weights" in shown
    assert "quick trials" in shown
    runs = json.loads((tmp_path / "penalties.json").read_text())["runs"]
    assert len(runs) == 6 * 2
    assert "proximal" in (tmp_path / "penalties.svg").read_text()
    assert main(arguments) == 0
    assert json.loads((tmp_path / "penalties.json").read_text())["runs"] == runs


def test_the_tables_are_listed(capsys: Output) -> None:
    assert main(["reproduce", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("preprocessing", "transfer", "ensembles"))


def row_of(shown: str, name: str) -> str:
    return next(line for line in shown.splitlines() if line.startswith(f"│ {name} "))


def test_the_list_counts_the_runs_of_these_seeds(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for seeds, runs in ((10, 60), (200, "1,200")):  # six settings, whose runs four columns share
        assert main(["reproduce", "--list", "--seeds", str(seeds)]) == 0
        row = row_of(capsys.readouterr().out, "penalties")
        assert row.split("│")[-2].strip() == str(runs)
        assert "Penalties of large weights" in row
        assert "S3, S4" in row


def test_a_table_runs_on_a_folder_beside_its_own_results(tmp_path: Path, capsys: Output) -> None:
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (9, 9), colour).save(tmp_path / "photos" / name / f"{i}.png")
    out = tmp_path / "reproduced"
    arguments = ["reproduce", "preprocessing", "--data", str(tmp_path / "photos"), "--tiny"]
    assert main([*arguments, "--seeds", "1", "--jobs", "1", "--out", str(out)]) == 0
    assert "of a folder of images" in capsys.readouterr().out
    content = json.loads((out / "preprocessing-photos.json").read_text())
    assert content["data"] == str(tmp_path / "photos")
    assert len(content["runs"]) == 9
    assert (out / "preprocessing-photos.svg").exists()
    assert not (out / "preprocessing.json").exists()


def test_a_folder_without_images_is_a_wrong_call(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    arguments = ["reproduce", "preprocessing", "--data", str(tmp_path / "photos"), "--seeds", "1"]
    assert main([*arguments, "--tiny", "--jobs", "1", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "Found no valid file for the classes cat" in shown
    assert "|-- train" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["penalty"], "no table 'penalty'"),
        (["penalties", "--seeds", "0"], "--seeds is 0"),
        (["penalties", "--jobs", "0"], "--jobs is 0"),
        (["--list", "--seeds", "0"], "--seeds is 0"),
        (["penalties", "--data", "."], "on its own data: without --data, or preprocessing or regu"),
        (["preprocessing", "--data", "nowhere"], "--data is nowhere, but there is no such folder"),
    ],
)
def test_wrong_calls_say_what_is_wrong(arguments: list[str], message: str, capsys: Output) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err
