"""Results, as a page of Markdown."""

from pathlib import Path

from lightning_practices.files import write_file
from lightning_practices.reproduce._results import Cell, Results
from lightning_practices.reproduce._show import number, origin
from lightning_practices.reproduce._table import Column


def write_page(results: Results, path: Path) -> None:
    """Write a page with the table and the picture, which lies beside it under the same name."""
    write_file(path, page(results, path.with_suffix(".svg").name))


def page(results: Results, picture: str) -> str:
    """Return a page of Markdown: the claim, the picture, the table, and how it was made."""
    table = results.table
    shared = _shared_metric(results)
    headers = [table.axis or ""]
    for label, column in table.columns.items():
        headers.append(label if shared or not column.unit else f"{label}, {column.unit}")
    rows = [
        [row, *(_text(results.cell(row, label), column) for label, column in table.columns.items())]
        for row in table.rows
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (headers, *rows)]
    lines.insert(1, "| --- |" + " ---: |" * len(table.columns))
    return (
        "\n\n".join(
            [
                f"# {table.title}",
                f"{table.source}: {table.claim}.",
                f"![{table.title}, drawn]({picture})",
                "\n".join(lines),
                _caption(results, shared),
            ]
        )
        + "\n"
    )


def _shared_metric(results: Results) -> str:
    """Return the metric of all columns with its unit, or an empty text if they differ."""
    metrics = {(column.metric, column.unit) for column in results.table.columns.values()}
    if len(metrics) > 1:
        return ""
    ((metric, unit),) = metrics
    return f"{metric} in {unit}" if unit else metric


def _text(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return ""
    parts = [number(cell.mean, cell.interval, column.digits)]
    if cell.gain is not None:
        clear = cell.gain_interval is not None and abs(cell.gain) > cell.gain_interval
        gain = number(cell.gain, cell.gain_interval, column.digits, signed=True)
        parts.append(f"**{gain}**" if clear else gain)
    if cell.lecture is not None:
        parts.append(f"*lecture {cell.lecture:g}*")
    return "<br>".join(parts)


def _caption(results: Results, metric: str) -> str:
    table, seeds = results.table, results.seeds
    trial = " These are quick trials, not the experiment." if results.tiny else ""
    lecture = any(column.lecture for column in table.columns.values())
    return (
        f"{metric.capitalize() or 'Each'}: mean ± 95 % interval over {seeds} seeds, by Student's t;"
        " below it, the difference to"
        f" “{table.reference}”, seed by seed, in bold where its interval leaves out 0"
        f"{'; in italics, the lecture' if lecture else ''}.{trial}{origin(results)} Made by"
        f" `lightning-practices reproduce {table.name} --seeds {seeds}` in"
        f" {_duration(results.seconds)} of one thread on {_machine(results)}."
    )


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _machine(results: Results) -> str:
    device = results.machine.get("device", "cpu")
    where = "a CPU" if device == "cpu" else f"one {device}"
    return f"{where}, with torch {results.machine.get('torch', 'unknown')}"
