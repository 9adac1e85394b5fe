"""The documents' figures are those of the committed results, and nobody's typing."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.readme import CROSSOVERS, NOT_MEASURED, NOT_PREDICTED, PREDICTIONS, markers
from tests.benchmarks import planted

BEGIN, END = markers("performance")
KERNELS = "\n".join(("# Kernels", *markers(PREDICTIONS), "Between.", *markers(CROSSOVERS), ""))
TEXT = f"# Project\n\nBefore.\n\n{BEGIN}\nold figures\n{END}\n\nAfter.\n"


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """Return a README with the two markers."""
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return a folder of committed results: an older and a newer file, and one of a CPU."""
    folder = tmp_path / "results"
    slow = planted.kernel_row("ours", ratio_to_best_peer=0.5)
    planted.save(folder / "h200" / "z.json", [slow], date="2026-01-01T00:00:00+00:00")
    planted.save(folder / "h200" / "kernels.json", planted.kernel_rows())
    planted.save(folder / "h200" / "fit.json", planted.fit_rows())
    planted.save(folder / "cpu" / "kernels.json", [slow], gpu=None, date="2027-01-01")
    return folder


def run(readme: Path, results: Path, *options: str) -> int:
    """Run ``readme`` on the command line."""
    kernels = readme.with_name("kernels.md")
    if not kernels.exists():
        kernels.write_text(KERNELS)
    documents = ("--readme", str(readme), "--kernels", str(kernels))
    return main(["readme", *documents, "--results", str(results), *options])


def test_without_results_it_says_so(readme: Path, tmp_path: Path) -> None:
    assert run(readme, tmp_path / "none") == 0
    assert readme.read_text() == TEXT.replace("old figures", NOT_MEASURED)
    assert "not measured yet" in NOT_MEASURED
    assert "python -m benchmarks kernels" in NOT_MEASURED


def test_the_newest_results_of_a_gpu_are_shown(readme: Path, results: Path) -> None:
    assert run(readme, results) == 0
    text = readme.read_text()
    assert "NVIDIA H200, driver 580.1" in text
    assert "| layer_norm | bf16 | forward | 3 | 11.5 | 86.2 | 1.25 | 1.25 | 2 |" in text
    assert "| resnet50 | ours | 80 | 0.800 | 15,000 | 0.200 |" in text
    assert "Failed: resnet50 ours compiled." in text
    assert "quack-kernels missing (layer_norm), flag-gems wrong (layer_norm)" in text
    assert "No GPU" not in text
    assert "0.500" not in text  # the older file's


def test_only_the_section_changes_and_a_second_run_changes_nothing(
    readme: Path, results: Path
) -> None:
    run(readme, results)
    once = readme.read_text()
    assert once.startswith(f"# Project\n\nBefore.\n\n{BEGIN}\n")
    assert once.endswith(f"\n{END}\n\nAfter.\n")
    assert "old figures" not in once
    run(readme, results)
    assert readme.read_text() == once


def test_check_writes_nothing(readme: Path, results: Path) -> None:
    assert run(readme, results, "--check") == 1
    assert readme.read_text() == TEXT
    run(readme, results)
    assert run(readme, results, "--check") == 0
    planted.save(results / "h200" / "new.json", planted.kernel_rows()[:4], date="2027-01-01")
    assert run(readme, results, "--check") == 1


@pytest.mark.parametrize(
    "text", ["no markers", f"{BEGIN} alone", f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"]
)
def test_markers_out_of_place_are_an_error(
    readme: Path, results: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readme.write_text(text)
    assert run(readme, results) == 2
    assert BEGIN in capsys.readouterr().err
    assert readme.read_text() == text


def test_a_damaged_result_is_named(
    readme: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "h200" / "kernels.json").write_text("{}")
    assert run(readme, results) == 2
    assert "kernels.json is not a file of benchmark results" in capsys.readouterr().err
    assert readme.read_text() == TEXT


def test_predictions_and_crossovers_are_in_the_page_of_the_kernels(
    readme: Path, results: Path
) -> None:
    assert run(readme, results) == 0
    page = readme.with_name("kernels.md")
    assert NOT_PREDICTED in page.read_text()
    row: dict[str, Any] = {
        "call": "dropout bf16 8",
        "direction": "forward",
        "predicted_for": "H200",
    }
    row |= {"predicted_percent": 81.2, "predicted_bound": "issue"}
    planted.save(results / "predicted" / "static.json", [row], gpu=None)
    assert run(readme, results, "--check") == 1
    assert run(readme, results) == 0
    text = page.read_text()
    assert "| dropout bf16 8 | forward | 81 issue |" in text
    assert "Predicted, not measured" in text
    assert NOT_PREDICTED not in text
    assert "| `batch_norm` | 4 MiB | bfloat16, float32 | of a multiple of 8 elements |" in text
    assert "| `drop_block` | any size | bfloat16, float16, float32 | any |" in text
    assert "\nBetween.\n" in text


def test_the_real_documents_are_up_to_date() -> None:
    assert main(["readme", "--check"]) == 0
