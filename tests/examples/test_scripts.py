"""Each example as a script: it says how it is used, and runs on its own."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {script.name}")
    assert ("--out OUT" in printed) is script.with_suffix(".png").exists()
    documented = script.read_text().removeprefix('"""').splitlines()[0]
    assert "".join(documented.split()) in "".join(printed.split())  # wrapped, also at hyphens
