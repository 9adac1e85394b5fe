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
        gain = number(cell.gain, cell.gain_interval, column.digits, signed=True)
        parts.append(f"**{gain}**" if cell.is_clear else gain)
    if cell.lecture is not None:
        parts.append(f"*lecture {cell.lecture:g}*")
    return "<br>".join(parts)


def _caption(results: Results, metric: str) -> str:
    table, seeds = results.table, results.seeds
    lecture = any(column.lecture for column in table.columns.values())
    options = " --tiny" if results.tiny else ""
    options += "" if results.data is None else f" --data {results.data}"
    return (
        f"{metric.capitalize() or 'Each'}: mean ± 95 % interval over {seeds} seeds, by Student's t;"
        f" below it, the difference to “{table.reference}”, seed by seed, in bold where its"
        " interval leaves out 0, as one in twenty does by chance"
        f"{'; in italics, the lecture' if lecture else ''}.{origin(results)} Made by"
        f" `lightning-practices reproduce {table.name} --seeds {seeds}{options}`: runs of"
        f" {_duration(results.seconds)} in all, {_machine(results)}."
    )


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _machine(results: Results) -> str:
    device = results.machine.get("device", "cpu")
    threads = "" if results.table.alone else "each with one thread, "
    where = f"{threads}on a CPU" if device == "cpu" else f"on one {device}"
    return f"{where}, by torch {results.machine.get('torch', 'unknown')}"
