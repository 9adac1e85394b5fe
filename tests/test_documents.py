"""What the documents say, run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import DEADLINE

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readmes_code_runs(code: str, tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 0, result.stderr
    # Both print a report: layers are fused, or left alone because torch's were not slower.
    reports = r"lightning_practices\.nn\.LayerNorm|no gain of 3 %|the whole step gains nothing"
    assert re.search(reports, result.stdout)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_files_that_a_document_names_are_there(name: str) -> None:
    text = (ROOT / name).read_text()
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    named = re.findall(
        r"`((?:tests|benchmarks|examples|kernels|lightning_practices)/[\w./]+)`", text
    )
    missing = [path for path in {*linked, *named} if not (ROOT / path).exists()]
    assert not missing


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"\bmake ([\w-]+)", (ROOT / name).read_text())) <= targets
