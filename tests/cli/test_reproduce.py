"""``lightning-practices reproduce``."""

import json
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["penalty"], "no table 'penalty'"),
        (["penalties", "--seeds", "0"], "--seeds is 0"),
        (["penalties", "--jobs", "0"], "--jobs is 0"),
    ],
)
def test_wrong_calls_say_what_is_wrong(arguments: list[str], message: str, capsys: Output) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err
