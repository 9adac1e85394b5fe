"""Reports of planted measurements: the tables' text, and images that show something."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from benchmarks import plots, report
from benchmarks.results import Results
from benchmarks.rows import cell
from tests.benchmarks import planted


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Report on one file with every kind of row; return the files by name."""
    out = tmp_path_factory.mktemp("report")
    rows = [
        *planted.kernel_rows(),
        *planted.fit_rows(),
        planted.cpu_row(0.3),
        planted.cpu_row(1.04, op="layer_norm", dtype="bfloat16"),
        {"practice": "EarlyStopping", "percent_of_20ms_step": 0.2, "microseconds_per_step": 40.0},
    ]
    results = Results(out / "all.json", planted.ENVIRONMENT, rows)
    return {path.name: path for path in report.write(results, out / "report")}


def cells(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table under ``heading``, its own headings first."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line[1:-1].replace("\\|", "\0").split("|")] for line in lines]
    return [[cell.replace("\0", "|") for cell in row] for row in rows if set(row[0]) != {"-"}]


def test_a_table_has_every_provider_or_why_it_has_no_time(written: dict[str, Path]) -> None:
    headings, *rows = cells(written["all.md"].read_text(), "layer_norm")
    assert headings[3:8] == ["shape", "ours", "eager", "flag-gems", "quack-kernels"]
    assert [row[3] for row in rows] == ["1x128", "256x1024", "8192x4096"]
    assert rows[2][:10] == [
        "bf16", "contiguous", "forward", "8192x4096", "38.9", "71.1", "wrong", "missing", "86.2",
        "1.25",
    ]  # fmt: skip


def test_what_was_not_measured_is_listed_with_its_reason(written: dict[str, Path]) -> None:
    text = written["all.md"].read_text()
    assert cells(text, "Not measured") == [
        ["op", "provider", "status", "reason", "cases"],
        ["layer_norm", "quack-kernels", "missing", planted.MISSING, "3"],
        ["layer_norm", "flag-gems", "wrong", "error 0.5 | allowed 0.01", "3"],
    ]
    assert ["resnet50", "ours compiled", "failed", "no compiler", "1"] in cells(
        text.split("## Training steps")[1], "Not measured"
    )


def test_the_summary_is_of_ours_alone(written: dict[str, Path]) -> None:
    headings, *rows = cells(written["all.md"].read_text(), "Summary")
    assert rows == [["layer_norm", "bf16", "forward", "3", "11.5", "86.2", "1.25", "1.25", "2"]]
    assert headings[5] == "% of floor, largest case"


def test_the_environment_is_told(written: dict[str, Path]) -> None:
    text = written["all.md"].read_text()
    assert "NVIDIA H200, driver 580.1, python 3.12.3, torch 2.11.0, triton 3.6.0" in text
    assert "revision abc1234, 2026-11-20." in text


def test_every_kind_has_its_images_and_they_are_linked(written: dict[str, Path]) -> None:
    names = set(written) - {"all.md"}
    assert names == {
        "all_layer_norm_bandwidth.png", "all_layer_norm_ratio.png", "all_cpu.png", "all_fit.png",
        "all_overhead.png",
    }  # fmt: skip
    text = written["all.md"].read_text()
    assert all(f"]({name})" in text for name in names)


@pytest.mark.parametrize(
    ("name", "colours"),
    [
        ("all_layer_norm_bandwidth.png", plots.COLOURS[:2]),  # ours and eager
        ("all_layer_norm_ratio.png", plots.COLOURS[:1]),
        ("all_cpu.png", plots.COLOURS[:1]),
        ("all_fit.png", plots.COLOURS[:1]),  # ours; plain is the 1
        ("all_overhead.png", plots.COLOURS[:1]),
    ],
)
def test_images_show_the_data(
    written: dict[str, Path], name: str, colours: tuple[str, ...]
) -> None:
    pixels = image.imread(written[name])[..., :3]
    assert pixels.shape[0] > 150
    assert pixels.shape[1] > 400
    for colour in colours:
        shown = np.abs(pixels - np.array(to_rgb(colour))).max(axis=-1) < 0.02
        assert shown.sum() > 100, colour


def test_training_steps_are_one_panel_of_ratios_to_plain() -> None:
    rows = [row for row in planted.fit_rows() if row["status"] == "ok"]
    rows += [{**row, "model": "vit", "ratio_to_plain": None} for row in rows]
    figure = plots.training_steps(rows)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["resnet50"]
    (bar,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((1, 0.8))
    low, high = axes.get_xlim()
    assert low < 0.8 < 1 < high
    assert [1.0, 1.0] in [list(np.asarray(line.get_xdata())) for line in axes.get_lines()]


def test_labels_of_bars_lie_apart() -> None:
    rows = [
        planted.cpu_row(ratio, op=op, direction=direction)
        for op in ("dropout", "layer_norm", "stochastic_depth")
        for direction, ratio in (("forward", 0.3), ("forward+backward", 1.1))
    ]
    figure = plots.cpu_ratios(rows)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in [*axes.get_yticklabels(), *axes.texts]]
    assert len(boxes) == 3 + 6
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_bandwidth_points_lie_where_they_were_measured() -> None:
    rows = planted.kernel_rows()
    good = [row for row in rows if row["status"] == "ok"]
    (axes,) = plots.bandwidth("layer_norm", good).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == {"ours", "eager", "copy (floor)"}
    np.testing.assert_allclose(
        np.asarray(lines["ours"].get_xdata()), [4 * n for n in planted.SIZES.values()]
    )
    ours = [row["gbytes_per_s"] for row in good if row["provider"] == "ours"]
    np.testing.assert_allclose(np.asarray(lines["ours"].get_ydata()), ours)
    np.testing.assert_allclose(
        np.asarray(lines["copy (floor)"].get_ydata()), planted.COPY_GBYTES_PER_S
    )
    assert axes.get_xscale() == "log"


def test_copies_are_a_table_of_their_own_and_no_plot(tmp_path: Path) -> None:
    copy = {"op": "copy", "provider": "copy", "shape": "512 MiB", "ratio_to_best_peer": None}
    rows = [{**planted.kernel_row("copy", microseconds=125.0), **copy}]
    (path,) = report.write(Results(tmp_path / "k.json", planted.ENVIRONMENT, rows), tmp_path)
    headings, row = cells(path.read_text(), "Copies")
    assert headings == ["moved", "GB/s", "microseconds", "spread"]
    assert row == ["512 MiB", "1,074", "125", "0.500"]


def test_a_file_without_figures_still_has_a_table(tmp_path: Path) -> None:
    rows = [planted.bad_row("ours", "failed", "out of memory")]
    results = Results(tmp_path / "kernels.json", planted.ENVIRONMENT, rows)
    (path,) = report.write(results, tmp_path)
    assert "out of memory" in path.read_text()
    empty = Results(tmp_path / "empty.json", planted.ENVIRONMENT, [])
    (path,) = report.write(empty, tmp_path)
    assert "No rows." in path.read_text()


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.plots")
    monkeypatch.delattr("benchmarks.plots")
    monkeypatch.delitem(sys.modules, "matplotlib.artist")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    results = Results(tmp_path / "fit.json", planted.ENVIRONMENT, planted.fit_rows())
    (path,) = report.write(results, tmp_path)
    assert "resnet50" in path.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (100.0, "100"),
        (12.345, "12.3"),
        (0.00397, "0.00397"),
        (12345.6, "12,346"),
        (float("nan"), "nan"),
        (4096, "4096"),
        ([8, 128], "8x128"),
    ],
)
def test_cells_have_three_digits(value: object, text: str) -> None:
    assert cell(value) == text
