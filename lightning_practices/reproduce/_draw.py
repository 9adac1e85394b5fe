"""Results, drawn: a dot with its interval for each cell, or curves over an axis."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from lightning_practices.files import replacing
from lightning_practices.pictures import COLOURS, GREY, INK, STYLE, TEXT_SIZES, dress
from lightning_practices.reproduce._results import Cell, Results
from lightning_practices.reproduce._table import Column

_LETTERS = 30  # of a line of a row's label and of a panel's title
_LETTER = 0.07  # width in inches
_LINE = 0.17  # height of a line of text in inches
_PANEL, _ROW = 2.6, 0.2  # width of a panel, and height of a row without its label
_MARGIN = 0.08  # around a panel in inches
_LECTURE: dict[str, Any] = {"ls": "none", "marker": "D", "ms": 6, "mfc": "white", "mew": 1.4}
_LABEL: dict[str, Any] = {"color": INK, "fontsize": TEXT_SIZES["label"]}


def draw(results: Results, path: Path) -> None:
    """Draw the results to a picture, whose suffix is the format.

    A table whose columns have places on an axis is drawn as curves. Else each column is a panel
    with a dot for each row, and panels of the same metric have the same scale. An open diamond is
    the lecture's figure.

    Args:
        results: The results.
        path: The file, such as ``"table.svg"``.
    """
    from matplotlib.figure import Figure

    figure: Any = Figure(layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=_MARGIN, h_pad=_MARGIN)
    if results.table.axis is None:
        _draw_dots(figure, results)
    else:
        _draw_curves(figure, results)
    with replacing(path) as part:
        figure.savefig(part, dpi=STYLE["savefig.dpi"])


def _draw_dots(figure: Any, results: Results) -> None:
    """Draw a panel for each column, in which each row has a dot with its interval."""
    table = results.table
    rows = [fill(row, _LETTERS) for row in table.rows]
    titles = {label: fill(label, _LETTERS) for label in table.columns}
    across = len(table.columns) if len(table.columns) <= 3 else 2 if len(table.columns) == 4 else 3
    down = -(-len(table.columns) // across)
    height = sum(_ROW + _LINE * _lines(row) for row in rows)
    figure.set_size_inches(
        0.3 + _LETTER * _widest(rows) + _PANEL * across,
        0.4 + down * (height + 0.5 + _LINE * max(map(_lines, titles.values()))),
    )
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flatten().tolist()
    first: dict[tuple[str, str], Any] = {}  # panel of a metric
    for panel, (label, column) in zip(panels, table.columns.items(), strict=False):
        for y, row in enumerate(table.rows):
            if (cell := results.cell(row, label)) is not None:
                _draw_dot(panel, cell, y, row == table.reference)
        if (shared := first.setdefault((column.metric, column.unit), panel)) is not panel:
            panel.sharex(shared)
        panel.set_title(titles[label], loc="left", color=INK, fontsize=TEXT_SIZES["title"])
        panel.set_xlabel(_label(column), **_LABEL)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        dress(panel, grid="both")
        panel.tick_params(axis="y", labelsize=TEXT_SIZES["label"], length=0)
    for panel in first.values():
        panel.autoscale(axis="x")  # over all panels that share the axis
    for panel in panels[len(table.columns) :]:
        panel.set_visible(False)
    _name_the_lecture(figure, table.columns.values())


def _draw_dot(panel: Any, cell: Cell, y: int, reference: bool) -> None:
    colour = GREY if reference else COLOURS[0]
    panel.plot(cell.values, [y] * len(cell.values), "|", color=colour, alpha=0.35, ms=7, zorder=1)
    panel.errorbar(
        cell.mean, y, xerr=cell.interval, fmt="o", color=colour, ms=6, lw=2, capsize=3, zorder=3
    )
    if cell.lecture is not None:
        panel.plot(cell.lecture, y, mec=colour, zorder=2, **_LECTURE)
    if reference:
        panel.axvline(cell.mean, color=colour, lw=0.8, ls=":", zorder=0)


def _draw_curves(figure: Any, results: Results) -> None:
    """Draw a curve for each row over the columns' places; a panel for each metric."""
    table = results.table
    metrics = [*dict.fromkeys(column.metric for column in table.columns.values())]
    width = 1.2 + 4.2 * len(metrics) + _LETTER * min(_LETTERS, _widest([*table.rows]))
    figure.set_size_inches(width, 3.6)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        columns = {key: one for key, one in table.columns.items() if one.metric == metric}
        for i, row in enumerate(table.rows):
            colour = COLOURS[i % len(COLOURS)]
            points = [(one.x, results.cell(row, key)) for key, one in columns.items()]
            made = [(x, cell) for x, cell in points if cell is not None]
            panel.errorbar(
                [x for x, _ in made], [cell.mean for _, cell in made],
                [cell.interval or 0.0 for _, cell in made], fmt="o-", ms=4, lw=1.6, capsize=3,
                color=colour, label=fill(row, _LETTERS),
            )  # fmt: skip
            known = [(x, cell.lecture) for x, cell in made if cell.lecture is not None]
            panel.plot([x for x, _ in known], [y for _, y in known], mec=colour, **_LECTURE)
        panel.set_xlabel(table.axis, **_LABEL)
        panel.set_ylabel(_label(next(iter(columns.values()))), **_LABEL)
        if table.log_axis:
            panel.set_xscale("log")
            places = [one.x for one in columns.values()]
            panel.set_xticks(places, [f"{x:g}" for x in places], minor=False)
            panel.minorticks_off()
        dress(panel)
    panels[0].set_title(table.title, loc="left", color=INK, fontsize=TEXT_SIZES["title"])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right upper", frameon=False, labelcolor=INK,
        fontsize=TEXT_SIZES["tick"], labelspacing=0.8,
    )  # fmt: skip
    _name_the_lecture(figure, table.columns.values())


def _name_the_lecture(figure: Any, columns: Any) -> None:
    """Say below the panels what the open diamonds are, if there are any."""
    from matplotlib.lines import Line2D

    if any(column.lecture for column in columns):
        diamond = Line2D([], [], mec=INK, label="the lecture's figure", **_LECTURE)
        figure.legend(
            handles=[diamond], loc="outside lower right", frameon=False, labelcolor=INK,
            fontsize=TEXT_SIZES["tick"],
        )  # fmt: skip


def _label(column: Column) -> str:
    return f"{column.metric} in {column.unit}" if column.unit else column.metric


def _lines(text: str) -> int:
    return text.count("\n") + 1


def _widest(texts: Sequence[str]) -> int:
    return max(len(line) for text in texts for line in text.split("\n"))
