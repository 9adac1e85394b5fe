"""The plots of a file of results as PNG files: bandwidth by size, and bars."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # its default canvas is Agg, which needs no display
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

from benchmarks.rows import BOUNDS, COPY, OURS, Row, grouped, is_ok, kind_of, numbers, providers_of
from lightning_practices.files import replacing

_DPI = 110
# Okabe and Ito's palette, which colour-blind readers can distinguish. Ours is always the first.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*X"
_DECADE = 10.0


@dataclasses.dataclass(frozen=True)
class _Bar:
    """A bar: ``label`` names its line, ``hue`` its colour; ``spread`` is drawn unless ``None``."""

    label: str
    hue: str
    value: float
    spread: float | None = None


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
            figure.savefig(part, dpi=_DPI)
        paths.append(path)
    return paths


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of panels, each of ``size`` in inches."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.8), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def bandwidth(op: str, rows: Sequence[Row]) -> Figure:
    """Plot GB/s by size for every provider, with a panel per dtype, layout and direction."""
    groups = grouped(rows, "dtype", "layout")
    directions = list(grouped(rows, "direction"))
    figure, panels = _panels(len(groups), len(directions), (4.6, 3.3))
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
    axes.tick_params(axis="x", labelsize=8)
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
    return _ratio_bars(f"{op}: the best peer's time over ours\n(right of 1 is faster)", panels)


def _cpu(rows: Sequence[Row]) -> Figure:
    panels = {
        ", ".join((dtype, *([f"threads: {threads}"] if threads else []))): [
            _Bar(
                f"{_label(row, 'op', 'shape')}\nvs. {row['peer']}",
                str(row["direction"]), row["ratio"], row.get("spread"),
            )
            for row in group
        ]
        for (dtype, threads), group in grouped(rows, "dtype", "threads").items()
    }  # fmt: skip
    return _ratio_bars("CPU: our time over the peer's\n(left of 1 is faster)", panels)


def _fit(rows: Sequence[Row]) -> Figure | None:
    panels: dict[str, list[_Bar]] = {
        "samples per second": [], "milliseconds per step": [], "peak memory (MiB)": []
    }  # fmt: skip
    for row in rows:
        rate = next((row[name] for name in row if name.endswith("_per_s")), None)
        spread = row.get("spread")
        figures = (rate, row["milliseconds_per_step"], row.get("peak_mib"))
        for bars, value, error in zip(panels.values(), figures, (None, spread, None), strict=True):
            if value is not None:
                bars.append(_Bar(str(row["model"]), str(row["variant"]), value, error))
    panels = {heading: bars for heading, bars in panels.items() if bars}
    return _bars("Training steps", panels) if panels else None


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
    figure, grid = _panels(1, len(gpus), (4.0, 1.0 + 0.22 * len(lines)))
    for axes, ((gpu,), of_gpu) in zip(grid[0], gpus.items(), strict=True):
        for i, bound in enumerate(BOUNDS):
            mine = [row for row in of_gpu if row["predicted_bound"] == bound]
            axes.scatter(
                [row["predicted_percent"] for row in mine],
                [lines.index(_function_and_direction(row)) for row in mine],
                color=COLOURS[i], marker=_MARKERS[i], s=22, alpha=0.8, label=f"bound by {bound}",
            )  # fmt: skip
        axes.set_title(f"{gpu}, predicted")
        axes.set_xlabel("predicted % of the floor")
        axes.set_xlim(0, 102)
        axes.set_yticks(range(len(lines)), lines, fontsize=8)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(alpha=0.3)
    for axes in grid[0][1:]:
        axes.set_yticklabels([])
    figure.suptitle(
        "PREDICTION from machine code, not measured: each point is a pass over one shape",
        fontweight="bold", fontsize=11,
    )  # fmt: skip
    _add_legend(figure, grid[0])
    return figure


def _function_and_direction(row: Row) -> str:
    return f"{row['call'].partition(' ')[0]} {row['direction']}"


_FIGURES: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "cpu": _cpu,
    "fit": _fit,
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
        axes.set_xlim(min(0.5, min(values) / 1.6), max(2.0, max(values) * 1.6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axvline(1.0, color="black", linewidth=1)
    return figure


def _bars(title: str, panels: dict[str, list[_Bar]], start: float = 0.0) -> Figure:
    """Draw a panel of horizontal bars, grouped by label, for each item of ``panels``."""
    labels = list(dict.fromkeys(bar.label for bars in panels.values() for bar in bars))
    hues = list(dict.fromkeys(bar.hue for bars in panels.values() for bar in bars))
    lines = sum(max(len(hues), label.count("\n") + 1) for label in labels)
    figure, grid = _panels(1, len(panels), (5.4, 0.8 + 0.19 * lines))
    thickness = 0.84 / len(hues)
    for axes, (heading, bars) in zip(grid[0], panels.items(), strict=True):
        for i, hue in enumerate(hues):
            mine = [bar for bar in bars if bar.hue == hue]
            drawn = axes.barh(
                [labels.index(bar.label) + (i + 0.5) * thickness - 0.42 for bar in mine],
                [bar.value - start for bar in mine], left=start, height=thickness,
                color=COLOURS[i % 8], label=hue, xerr=[bar.spread or 0.0 for bar in mine],
                error_kw={"elinewidth": 0.8, "ecolor": "#555555"},
            )  # fmt: skip
            texts = [format(bar.value, ",.3g" if bar.value < 1e3 else ",.0f") for bar in mine]
            axes.bar_label(drawn, texts, padding=3, fontsize=7)
        axes.set_title(heading)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    for axes in grid[0][1:]:
        axes.set_yticklabels([])
    figure.suptitle(title, fontweight="bold", fontsize=11)
    if hues != [""]:
        _add_legend(figure, grid[0])
    return figure


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend below the panels, which is valid for all of them."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = min(len(handles), 4)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
