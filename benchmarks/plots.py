"""The plots of a file of results as PNG files: bandwidth by size, and bars."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # its default canvas is Agg, which needs no display
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

from benchmarks.rows import BOUNDS, COPY, OURS, Row, grouped, is_ok, kind_of, numbers, providers_of
from lightning_practices.files import replacing
from lightning_practices.pictures import STYLE

_WIDTH = 7.0  # of a figure in inches
# Okabe and Ito's palette, which colour-blind readers can distinguish. Ours is always the first.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*X"
_DECADE = 10.0
PLAIN = "plain"  # the variant of a training step with which the others are compared


@dataclasses.dataclass(frozen=True)
class _Bar:
    """A bar: ``label`` names its line, ``hue`` its colour; ``spread`` is drawn unless ``None``."""

    label: str
    hue: str
    value: float
    spread: float | None = None


@style.context(STYLE)
def draw(rows: Sequence[Row], prefix: Path) -> list[Path]:
    """Draw the rows that were measured.

    Args:
        rows: Rows of any kinds.
        prefix: Beginning of the path of every file.

    Returns:
        The written files: two for each op of ``kernels``, one for each other kind of row.
    """
    figures: dict[str, Figure] = {}
    ok = [row for row in rows if is_ok(row)]
    kernels = [row for row in ok if kind_of(row) == "kernels" and row["op"] != COPY]
    for (op,), of_op in grouped(kernels, "op").items():
        if numbers(of_op, "gbytes_per_s"):
            figures[f"{op}_bandwidth"] = bandwidth(op, of_op)
        ours = [row for row in of_op if row["provider"] == OURS]
        if numbers(ours, "ratio_to_best_peer"):
            figures[f"{op}_ratio"] = _kernel_ratios(op, ours)
    for kind, figure_of in _FIGURES.items():
        of_kind = [row for row in ok if kind_of(row) == kind]
        figure = figure_of(of_kind) if of_kind else None
        if figure is not None:
            figures[kind] = figure
    paths = []
    for name, figure in figures.items():
        path = prefix.with_name(f"{prefix.name}_{name}.png")
        with replacing(path) as part:
            figure.savefig(part)
        paths.append(path)
    return paths


def _panels(rows: int, columns: int, height: float) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of panels, each of a height in inches."""
    figure = Figure(figsize=(_WIDTH, height * rows + 1), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def bandwidth(op: str, rows: Sequence[Row]) -> Figure:
    """Plot GB/s by size for every provider, with a panel per dtype, layout and direction."""
    groups = grouped(rows, "dtype", "layout")
    directions = list(grouped(rows, "direction"))
    figure, panels = _panels(len(groups), len(directions), 3.0)
    names = providers_of(rows)
    for line, ((dtype, layout), group) in zip(panels, groups.items(), strict=True):
        for axes, (direction,) in zip(line, directions, strict=True):
            axes.set_title(", ".join(part for part in (dtype, layout, direction) if part))
            _bandwidth_panel(axes, [r for r in group if r["direction"] == direction], names)
        line[0].set_ylabel("GB/s (least bytes over time)")
    for axes in panels[-1]:
        axes.set_xlabel("least bytes to move")
    figure.suptitle(f"{op}: memory bandwidth", fontweight="bold")
    _add_legend(figure, [axes for line in panels for axes in line])
    return figure


def _bandwidth_panel(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        points = [(_size(row), row["gbytes_per_s"]) for row in rows if row["provider"] == name]
        weight = 2.4 if name == OURS else 1.2
        axes.plot(
            *_medians(points), label=name, color=COLOURS[i % 8], marker=_MARKERS[i % 8],
            linewidth=weight, markersize=4 + weight, zorder=3 if name == OURS else 2,
        )  # fmt: skip
    floor = [
        (_size(row), 100 * row["gbytes_per_s"] / row["percent_of_floor"])
        for row in rows
        if row.get("percent_of_floor")
    ]
    axes.plot(*_medians(floor), color="black", linestyle="--", linewidth=1.2, label="copy (floor)")
    sizes = [_size(row) for row in rows]
    if sizes and max(sizes) >= _DECADE * min(sizes):
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _size(row: Row) -> float:
    """Return the least bytes that the case must move, which all providers have in common."""
    return float(row["gbytes_per_s"] * 1e9 * row["microseconds"] * 1e-6)


def _medians(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the sizes in order, and for each size (to 3 digits) the median of its points."""
    at: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(points):
        at.setdefault(f"{point[0]:.3g}", []).append(point)
    sizes = [group[0][0] for group in at.values()]
    return sizes, [statistics.median(value for _, value in group) for group in at.values()]


def _kernel_ratios(op: str, rows: Sequence[Row]) -> Figure:
    measured = [row for row in rows if row.get("ratio_to_best_peer") is not None]
    panels = {
        dtype: [
            _Bar(_label(row, "layout", "shape"), str(row["direction"]), row["ratio_to_best_peer"])
            for row in of_dtype
        ]
        for (dtype,), of_dtype in grouped(measured, "dtype").items()
    }
    return _ratio_bars(f"{op}: the best peer's time over ours (right of 1 is faster)", panels)


def cpu_ratios(rows: Sequence[Row]) -> Figure:
    """Draw our time over the peer's, with a panel for each dtype and number of threads."""
    panels = {
        ", ".join((dtype, *([f"threads: {threads}"] if threads else []))): [
            _Bar(
                f"{_label(row, 'op', 'shape')}\nvs. {row['peer'].removeprefix('torch.nn.')}",
                str(row["direction"]), row["ratio"], row.get("spread"),
            )
            for row in group
        ]
        for (dtype, threads), group in grouped(rows, "dtype", "threads").items()
    }  # fmt: skip
    return _ratio_bars("CPU: our time over the peer's (left of 1 is faster)", panels)


def training_steps(rows: Sequence[Row]) -> Figure | None:
    """Draw the time of each variant's step over that of the plain step, where there is one."""
    bars = [
        _Bar(str(row["model"]), str(row["variant"]), row["ratio_to_plain"])
        for row in rows
        if row["variant"] != PLAIN and row.get("ratio_to_plain") is not None
    ]
    title = f"Training steps: time over that of {PLAIN} (left of 1 is faster)"
    return _ratio_bars(title, {"": bars}) if bars else None


def _overhead(rows: Sequence[Row]) -> Figure | None:
    bars = [
        _Bar(str(row["practice"]), "", row["percent_of_20ms_step"])
        for row in rows
        if row.get("percent_of_20ms_step") is not None
    ]
    if not bars:
        return None
    figure = _bars("What a practice adds to a step", {"% of a step of 20 ms": bars})
    figure.axes[0].axvline(1.0, color="black", linestyle="--", linewidth=1)
    return figure


def _predictions(rows: Sequence[Row]) -> Figure:
    """Draw a point for each pass, in lines by function, with a panel for each GPU."""
    gpus = grouped(rows, "predicted_for")
    lines = list(dict.fromkeys(map(_function_and_direction, rows)))
    columns = 2
    rows_of_panels = -(-len(gpus) // columns)
    figure, grid = _panels(rows_of_panels, columns, 1.0 + 0.2 * len(lines))
    panels = [axes for line in grid for axes in line]
    for axes in panels[len(gpus) :]:
        axes.set_visible(False)
    for axes, ((gpu,), of_gpu) in zip(panels, gpus.items(), strict=False):
        for i, bound in enumerate(BOUNDS):
            mine = [row for row in of_gpu if row["predicted_bound"] == bound]
            axes.scatter(
                [row["predicted_percent"] for row in mine],
                [lines.index(_function_and_direction(row)) for row in mine],
                color=COLOURS[i], marker=_MARKERS[i], s=36, alpha=0.8, label=f"bound by {bound}",
            )  # fmt: skip
        axes.set_title(f"{gpu}, predicted")
        axes.set_xlabel("predicted % of the floor")
        axes.set_xlim(0, 103)
        axes.set_yticks(range(len(lines)), lines)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(axis="x")
    for line in grid:
        line[1].set_yticklabels([])
    figure.suptitle(
        "PREDICTION from machine code, not measured:\neach point is a pass over one shape",
        fontweight="bold",
    )  # fmt: skip
    _add_legend(figure, panels[: len(gpus)])
    return figure


def _function_and_direction(row: Row) -> str:
    return f"{row['call'].partition(' ')[0]} {row['direction']}"


_FIGURES: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "cpu": cpu_ratios,
    "fit": training_steps,
    "overhead": _overhead,
    "prediction": _predictions,
}


def _label(row: Row, *fields: str) -> str:
    return " ".join(str(row[name]) for name in fields if row.get(name))


def _ratio_bars(title: str, panels: dict[str, list[_Bar]]) -> Figure:
    """Draw bars that start at 1 and extend to the left or right, on a logarithmic axis."""
    figure = _bars(title, panels, start=1.0)
    values = [bar.value for bars in panels.values() for bar in bars]
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(0.5, min(values) / 1.8), max(2.0, max(values) * 1.8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axvline(1.0, color="black", linewidth=1)
    return figure


def _bars(title: str, panels: dict[str, list[_Bar]], start: float = 0.0) -> Figure:
    """Draw a panel of horizontal bars, grouped by label, for each item of ``panels``."""
    hues = list(dict.fromkeys(bar.hue for bars in panels.values() for bar in bars))
    labels = [list(dict.fromkeys(bar.label for bar in bars)) for bars in panels.values()]
    lines = [_lines(own, len(hues)) for own in labels]
    figure = Figure(
        figsize=(_WIDTH, 1.2 + sum(0.6 + 0.21 * n for n in lines)), layout="constrained"
    )
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=lines)[:, 0].tolist()
    thickness = 0.84 / len(hues)
    for axes, (heading, bars), own in zip(grid, panels.items(), labels, strict=True):
        for i, hue in enumerate(hues):
            mine = [bar for bar in bars if bar.hue == hue]
            drawn = axes.barh(
                [own.index(bar.label) + (i + 0.5) * thickness - 0.42 for bar in mine],
                [bar.value - start for bar in mine], left=start, height=thickness,
                color=COLOURS[i % 8], label=hue, xerr=[bar.spread or 0.0 for bar in mine],
                error_kw={"elinewidth": 0.8, "ecolor": "#555555", "capsize": 0},
            )  # fmt: skip
            texts = [format(bar.value, ",.3g" if bar.value < 1e3 else ",.0f") for bar in mine]
            axes.bar_label(drawn, texts, padding=4, fontsize=9)
        axes.set_title(heading)
        axes.set_yticks(range(len(own)), own)
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontweight="bold", fontsize=11)
    if hues != [""]:
        _add_legend(figure, grid)
    return figure


def _lines(labels: Sequence[str], hues: int) -> int:
    """Return the lines of text that a panel has place for: one for each bar or line of a label."""
    return sum(max(hues, label.count("\n") + 1) for label in labels)


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend below the panels, which is valid for all of them."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = min(len(handles), 3)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
