"""Results, drawn: a dot with its interval for each cell, or curves over an axis."""

from pathlib import Path
from typing import Any

from lightning_practices.files import replacing
from lightning_practices.reproduce._results import Cell, Results
from lightning_practices.reproduce._table import Column

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
_GREY = "#8A8A8A"
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}


def draw(results: Results, path: Path) -> None:
    """Draw the results to a picture, whose suffix is the format."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure()
        if results.table.axis is None:
            _draw_dots(figure, results)
        else:
            _draw_curves(figure, results)
        with replacing(path) as part:
            figure.savefig(part)


def _draw_dots(figure: Any, results: Results) -> None:
    """Draw a panel for each column, in which each row has a dot with its interval."""
    table = results.table
    rows = [*table.rows]
    figure.set_size_inches(2.2 + 2.6 * len(table.columns), 1.1 + 0.36 * len(rows))
    panels = figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0]
    for panel, (label, column) in zip(panels, table.columns.items(), strict=True):
        for y, row in enumerate(rows):
            if (cell := results.cell(row, label)) is not None:
                _draw_dot(panel, cell, y, row == table.reference)
        panel.set_title(label)
        panel.set_xlabel(_label(column))
        panel.set_yticks(range(len(rows)), rows)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.tick_params(left=False)


def _draw_dot(panel: Any, cell: Cell, y: int, reference: bool) -> None:
    colour = _GREY if reference else _COLOURS[0]
    panel.plot(cell.values, [y] * len(cell.values), "|", color=colour, alpha=0.35, ms=7, zorder=1)
    panel.errorbar(
        cell.mean, y, xerr=cell.interval, fmt="o", color=colour, ms=6, lw=2, capsize=3, zorder=3
    )
    if reference:
        panel.axvline(cell.mean, color=colour, lw=0.8, ls=":", zorder=0)


def _draw_curves(figure: Any, results: Results) -> None:
    """Draw a curve for each row over the columns' places; a panel for each metric."""
    table = results.table
    metrics = [*dict.fromkeys(column.metric for column in table.columns.values())]
    figure.set_size_inches(1.5 + 4.5 * len(metrics), 3.6)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        columns = {key: one for key, one in table.columns.items() if one.metric == metric}
        for i, row in enumerate(table.rows):
            points = [(one.x, results.cell(row, key)) for key, one in columns.items()]
            made = [(x, cell) for x, cell in points if cell is not None]
            panel.errorbar(
                [x for x, _ in made], [cell.mean for _, cell in made],
                [cell.interval or 0.0 for _, cell in made], fmt="o-", ms=4, lw=1.6, capsize=3,
                color=_COLOURS[i % len(_COLOURS)], label=row,
            )  # fmt: skip
        panel.set(xlabel=table.axis, ylabel=_label(next(iter(columns.values()))))
        if table.log_axis:
            panel.set_xscale("log")
            places = [one.x for one in columns.values()]
            panel.set_xticks(places, [f"{x:g}" for x in places], minor=False)
            panel.minorticks_off()
    panels[0].set_title(table.title)
    panels[-1].legend()


def _label(column: Column) -> str:
    return f"{column.metric} in {column.unit}" if column.unit else column.metric
