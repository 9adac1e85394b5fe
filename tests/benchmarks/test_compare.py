"""Comparisons of planted results: what counts as a regression, and what does not."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.compare import Verdict, by_identity, compare
from benchmarks.rows import Row
from tests.benchmarks.planted import bad_row, cpu_row, fit_rows, kernel_row, save


def verdicts(before: list[Row], after: list[Row]) -> dict[str, Verdict]:
    """Return the verdict on each field."""
    changes = compare(by_identity(before), by_identity(after))
    return {change.field: change.verdict for change in changes}


@pytest.mark.parametrize(
    ("microseconds", "spread", "verdict"),
    [
        (44.0, 0.5, "regression"),  # 10% slower, spreads of 1 us together
        (36.0, 0.5, "gain"),
        (44.0, 2.5, "same"),  # 10% slower within spreads of 5 us
        (36.0, 2.5, "same"),
        (40.6, 0.0, "same"),  # 1.5% slower without a spread: below the least that counts
        (41.0, 0.0, "regression"),
    ],
)
def test_a_change_counts_beyond_the_spread_of_both(
    microseconds: float, spread: float, verdict: str
) -> None:
    before = kernel_row("ours", microseconds=40.0, spread=spread)
    after = kernel_row("ours", microseconds=microseconds, spread=spread)
    assert verdicts([before], [after])["microseconds"] == verdict


def test_the_spread_of_either_run_is_enough() -> None:
    steady = kernel_row("ours", microseconds=40.0, spread=0.0)
    noisy = kernel_row("ours", microseconds=44.0, spread=5.0)
    assert verdicts([steady], [noisy])["microseconds"] == "same"
    assert verdicts([noisy], [steady])["microseconds"] == "same"


def test_memory_has_no_spread() -> None:
    before = kernel_row("ours", spread=20.0)
    after = kernel_row("ours", spread=20.0, peak_mib=128.0, saved_bytes=0)
    found = verdicts([before], [after])
    assert found == {"microseconds": "same", "peak_mib": "regression", "saved_bytes": "gain"}


def test_a_slower_peer_is_shown_and_not_held_against_us() -> None:
    before, after = kernel_row("eager"), kernel_row("eager", microseconds=80.0)
    assert verdicts([before], [after])["microseconds"] == "peer slower"
    plain, ours, _ = fit_rows()
    for row, verdict in ((plain, "peer slower"), (ours, "regression")):
        slower = {**row, "milliseconds_per_step": 200.0}
        assert verdicts([row], [slower])["milliseconds_per_step"] == verdict


def test_each_kind_is_judged_by_its_own_field() -> None:
    assert verdicts([cpu_row(1.0)], [cpu_row(1.1)]) == {"ratio": "regression"}
    assert verdicts([cpu_row(1.0)], [cpu_row(1.1, spread=0.2)]) == {"ratio": "same"}
    static = {"kernel": "k", "call": "c", "target": 90, "spills": 0, "vector_bits": 128}
    worse = {**static, "spills": 8, "vector_bits": 64}
    found = verdicts([static], [worse])
    assert found == {"spills": "regression", "vector_bits": "regression"}
    assert verdicts([static], [dict(static)]) == {"spills": "same", "vector_bits": "same"}


def test_a_row_that_broke_is_a_regression_and_a_missing_peer_is_not() -> None:
    wrong = bad_row("ours", "wrong", "error 0.5")
    assert verdicts([kernel_row("ours")], [wrong]) == {"status": "regression"}
    assert verdicts([wrong], [kernel_row("ours")]) == {"status": "gain"}
    missing = bad_row("quack-kernels", "missing", "not installed")
    assert verdicts([kernel_row("quack-kernels")], [missing]) == {"status": "not measured now"}


def test_rows_join_by_identity_in_any_order() -> None:
    before = [kernel_row("ours", shape, 10.0) for shape in ("1x128", "256x1024")]
    after = [kernel_row("ours", "256x1024", 10.0), kernel_row("ours", "1x128", 20.0)]
    changes = compare(by_identity(before), by_identity(after))
    slower = [change.row["shape"] for change in changes if change.verdict == "regression"]
    assert slower == ["1x128"]
    other = [{**row, "layout": "channels_last"} for row in before]
    assert not list(compare(by_identity(before), by_identity(other)))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return two files: one row 10% slower, one row in each alone."""
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    common = kernel_row("ours", "256x1024", 5.0)
    save(a, [kernel_row("ours"), common, kernel_row("ours", layout="channels_last")])
    save(
        b,
        [kernel_row("ours", microseconds=44.0), common, kernel_row("ours", dtype="fp32")],
        revision="def5678",
        date="2026-11-21T10:00:00+00:00",
    )
    return a, b


def run(*arguments: Any) -> int:
    """Run ``compare`` on the command line."""
    return main(["compare", *map(str, arguments)])


def test_the_command_tells_all(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = files
    assert run(a, b) == 0
    out = capsys.readouterr().out
    assert "Rule: a change counts if it is larger than the spreads" in out
    (line,) = [line for line in out.splitlines() if "regression" in line and "│" in line]
    assert "layer_norm bf16 contiguous forward 8192x4096 ours" in line
    assert "+10.0%" in line
    assert "abc1234" in out
    assert "def5678" in out
    assert "2026-11-21" not in out  # dates always differ
    assert f"1 rows are only in {a}:\n  layer_norm bf16 channels_last" in out
    assert f"1 rows are only in {b}:\n  layer_norm fp32 contiguous" in out


def test_the_exit_status_is_1_on_regressions_if_asked(files: tuple[Path, Path]) -> None:
    a, b = files
    assert run(a, b, "--fail-on-regression") == 1
    assert run(b, a, "--fail-on-regression") == 0  # a gain
    assert run(a, a, "--fail-on-regression") == 0
    assert run(a, b, "--fail-on-regression", "--least", "12") == 0


def test_what_cannot_be_compared_is_an_error(
    tmp_path: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files[0], tmp_path / "absent.json") == 2
    assert "absent.json" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text("{")
    assert run(files[0], tmp_path / "broken.json") == 2
    assert "not a file of benchmark results" in capsys.readouterr().err
    save(tmp_path / "cpu.json", [cpu_row(1.0)])
    assert run(files[0], tmp_path / "cpu.json") == 2
    assert "no row in common" in capsys.readouterr().err
