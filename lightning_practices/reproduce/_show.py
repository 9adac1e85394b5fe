"""Results, printed."""

from collections.abc import Mapping

from rich.console import Group
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

from lightning_practices.reproduce._results import Cell, Results
from lightning_practices.reproduce._table import Column


def show(results: Results) -> Group:
    """Return a table of rich: means with intervals, gains over the reference, the lecture."""
    table = results.table
    headers = [
        RichColumn(label if not column.unit else f"{label}\n{column.unit}", justify="right")
        for label, column in table.columns.items()
    ]
    shown = RichTable("", *headers, title=table.title, show_lines=True)
    for row in table.rows:
        cells = [_text(results.cell(row, label), table.columns[label]) for label in table.columns]
        shown.add_row(row, *cells)
    return Group(shown, Text(_caption(results), style="dim"))


def number(value: float, interval: float | None, digits: int, signed: bool = False) -> str:
    """Return a mean with its interval, such as ``"97.8 ± 0.3"``."""
    mean = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return mean if interval is None else f"{mean} ± {interval:.{digits}f}"


def _text(cell: Cell | None, column: Column) -> Text:
    if cell is None:
        return Text("")
    lines = [Text(number(cell.mean, cell.interval, column.digits))]
    if cell.gain is not None:
        better = (cell.gain > 0) == column.more_is_better
        style = ("green" if better else "red") if cell.is_clear else "dim"
        lines.append(Text(number(cell.gain, cell.gain_interval, column.digits, signed=True), style))
    if cell.lecture is not None:
        lines.append(Text(f"lecture {cell.lecture:g}", "italic dim"))
    return Text("\n").join(lines)


def _caption(results: Results) -> str:
    table, seeds = results.table, results.seeds
    return (
        f"Mean ± 95 % interval over {seeds} seeds; below, the difference to {table.reference!r}, "
        f"seed by seed (coloured where its interval leaves out 0).{origin(results)}\n"
        f"{table.source}: {table.claim}"
    )


def origin(results: Results) -> str:
    """Say where runs differ from those of a single call of the experiment."""
    text = " These are quick trials, not the experiment." if results.tiny else ""
    if len(results.machines) > 1:
        each = "; ".join(map(_in_words, results.machines))
        text += f" The runs were made by different versions or devices: {each}."
    if others := len(results.runs) - len(results.shown):
        text += f" The file also holds {others} runs of other settings, which are not shown."
    return text


def _in_words(machine: Mapping[str, str]) -> str:
    """Return versions and the device, such as ``"torch 2.12.0, device cpu"``."""
    return ", ".join(f"{name} {value}" for name, value in machine.items()) or "unknown"
