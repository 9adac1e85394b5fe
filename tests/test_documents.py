"""What the documents say, run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import DEADLINE

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/kernels.md", "docs/many_gpus.md")


def blocks_of(name: str) -> list[str]:
    """Return the Python code of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def output_of(code: str, folder: Path) -> str:
    """Run a program in a process of its own, and return what it printed."""
    command: list[str | Path] = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 0, result.stderr
    return result.stdout


README = blocks_of("README.md")
PAGES = blocks_of("docs/kernels.md") + blocks_of("docs/many_gpus.md")


@pytest.mark.parametrize("code", README, ids=range(len(README)))
def test_the_readmes_code_runs(code: str, tmp_path: Path) -> None:
    # Both print a report: layers are fused, or left alone because torch's were not slower.
    reports = r"lightning_practices\.nn\.LayerNorm|no gain of 3 %|the whole step gains nothing"
    assert re.search(reports, output_of(code, tmp_path))


@pytest.mark.parametrize("code", PAGES, ids=range(len(PAGES)))
def test_the_code_of_the_pages_runs(code: str, tmp_path: Path) -> None:
    output_of(code, tmp_path)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_files_that_a_document_names_are_there(name: str) -> None:
    text = (ROOT / name).read_text()
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    named = re.findall(
        r"`((?:tests|benchmarks|examples|kernels|lightning_practices)/[\w./]+)`", text
    )
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [path for path in linked if not (ROOT / name).parent.joinpath(path).exists()]
    assert not missing


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name in DOCUMENTS:
        assert set(re.findall(r"\bmake ([\w-]+)", (ROOT / name).read_text())) <= targets
