"""``report``: write the Markdown tables and the plots of files of results."""

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Results
from benchmarks.rows import (
    COPY,
    IDENTITY,
    OURS,
    Row,
    cell,
    grouped,
    is_ok,
    kind_of,
    numbers,
    providers_of,
)
from lightning_practices.files import write_file

_MEANINGS = {
    "missing": "not installed, or without this op",
    "failed": "raised an error",
    "wrong": "gave a wrong result, so it was not timed",
    "crashed": "ended the process or broke the GPU's context",
    "skipped": "left out on purpose",
    "timeout": "took longer than it may, or no time was left",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of results")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: beside each file)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Write the report of every file; return 2 if a file can't be read."""
    for file in arguments.files:
        try:
            results = Results.load(file)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        for path in write(results, arguments.out or file.parent):
            print(path)
    return 0


def write(results: Results, out: Path) -> list[Path]:
    """Write the tables and plots of ``results`` to ``out``, named after the file of results.

    Without Matplotlib only the tables are written.

    Returns:
        The written files, the Markdown file first.
    """
    out.mkdir(parents=True, exist_ok=True)
    stem = results.path.stem
    try:
        from benchmarks import plots  # only here: Matplotlib is optional, and slow to import
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        images = []
    else:
        images = plots.draw(results.rows, out / stem)
    text = markdown(results)
    for image in images:
        title = image.stem.removeprefix(f"{stem}_").replace("_", " ")
        text += f"\n![{title}]({image.name})\n"
    path = out / f"{stem}.md"
    write_file(path, text)
    return [path, *images]


def markdown(results: Results) -> str:
    """Return the tables of ``results`` as Markdown, with a heading for each kind of row."""
    parts = [f"# {results.path.stem.replace('_', ' ').capitalize()}", describe(results)]
    for kind, section in _SECTIONS.items():
        rows = [row for row in results.rows if kind_of(row) == kind]
        if rows:
            parts += section(rows)
    if not results.rows:
        parts.append("No rows.")
    return "\n\n".join(parts) + "\n"


def describe(results: Results) -> str:
    """Return one sentence with the machine, the versions and the date of ``results``."""
    environment = results.environment
    cpu = f"{environment.get('cpu')}, {environment.get('cpu_cores')} cores"
    versions = (
        f"{name} {environment[name]}"
        for name in ("driver", "python", "torch", "triton", "lightning", "revision")
        if environment.get(name)
    )
    date = str(environment.get("date"))[:10]
    return f"{environment.get('gpu') or f'No GPU ({cpu})'}, {', '.join(versions)}, {date}."


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: int = 1) -> str:
    """Return a Markdown table. Columns after the first ``text_columns`` are aligned right."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(headings))]
    lines = [headings, rule, *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _geometric_mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


SUMMARY_HEADINGS = (
    "op", "dtype", "direction", "cases", "% of floor, median", "% of floor, largest case",
    "vs. best peer", "vs. best peer, worst case", "vs. eager",
)  # fmt: skip


def summarise(rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
    """Yield a line for :data:`SUMMARY_HEADINGS` per op, dtype and direction of our rows."""
    ours = [row for row in rows if row.get("provider") == OURS and is_ok(row)]
    for key, group in grouped(ours, "op", "dtype", "direction").items():
        floor, peer, eager = (
            numbers(group, field)
            for field in ("percent_of_floor", "ratio_to_best_peer", "ratio_to_eager")
        )
        largest = max(group, key=lambda row: row["microseconds"] * (row.get("gbytes_per_s") or 0))
        yield (
            *key, len(group), statistics.median(floor) if floor else None,
            largest.get("percent_of_floor"), _geometric_mean(peer), min(peer, default=None),
            _geometric_mean(eager),
        )  # fmt: skip


def not_measured(rows: Sequence[Row]) -> list[str]:
    """Return the section on rows without figures and the reasons; empty if all were measured."""
    left = [row for row in rows if not is_ok(row)]
    if not left:
        return []
    fields = [name for name in ("op", "model", "variant", "provider") if name in left[0]]
    groups = Counter(
        tuple(cell(row.get(name)) for name in (*fields, "status", "reason")) for row in left
    )
    statuses = dict.fromkeys(row["status"] for row in left)
    meanings = [f"{status}: {_MEANINGS[status]}" for status in statuses if status in _MEANINGS]
    columns = [*fields, "status", "reason", "cases"]
    lines = [(*key, count) for key, count in groups.items()]
    return [
        "## Not measured",
        *([f"{'; '.join(meanings).capitalize()}."] if meanings else []),
        table(columns, lines, text_columns=len(columns) - 1),
    ]


def _kernels(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Summary"
    yield (
        "Cases are shapes and layouts. The floor is the least time in which the bytes that must"
        " move can be copied, measured in the same run. Ratios are geometric means of the peer's"
        " time over ours: above 1 is faster than the peer."
    )
    yield table(SUMMARY_HEADINGS, summarise(rows), text_columns=3)
    yield from not_measured(rows)
    for (op,), of_op in grouped(rows, "op").items():
        yield from _copies(of_op) if op == COPY else _op(op, of_op)


def _copies(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Copies"
    yield "Bytes read plus bytes written; the fastest copy sets the floors."
    fields = ("shape", "gbytes_per_s", "microseconds", "spread")
    lines = ([row.get(field) for field in fields] for row in rows)
    yield table(("moved", "GB/s", "microseconds", "spread"), lines)


def _op(op: str, rows: Sequence[Row]) -> Iterator[str]:
    names = providers_of(rows)
    yield f"## {op}"
    yield "Microseconds of each provider. The columns after them describe ours."
    identity = ("dtype", "layout", "direction", "shape")
    more = {
        "percent_of_floor": "% of floor", "ratio_to_best_peer": "vs. best peer",
        "host_us": "host us", "peak_mib": "peak MiB", "saved_bytes": "saved bytes",
    }  # fmt: skip
    lines = []
    for key, case in grouped(rows, *identity).items():
        by_name = {row["provider"]: row for row in case}
        times = [
            row["microseconds" if is_ok(row) else "status"] if row else None
            for row in map(by_name.get, names)
        ]
        lines.append([*key, *times, *(by_name.get(OURS, {}).get(field) for field in more)])
    yield table([*identity, *names, *more.values()], lines, text_columns=4)


def _plain(title: str, note: str) -> Callable[[Sequence[Row]], Iterator[str]]:
    """Return a section that consists of one table with all fields."""

    def section(rows: Sequence[Row]) -> Iterator[str]:
        yield f"## {title}"
        yield note
        fields = dict.fromkeys(name for row in rows for name in row)
        measured = [name for name in fields if name not in (*IDENTITY, "status", "reason")]
        identity = [name for name in fields if name in IDENTITY]
        headings = [*identity, *measured]
        lines = ([row.get(name) for name in headings] for row in rows if is_ok(row))
        yield table([name.replace("_", " ") for name in headings], lines, len(identity))
        yield from not_measured(rows)

    return section


def _predictions(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Predictions, not measurements"
    yield PREDICTED
    yield table(*pivot(rows), text_columns=2)


PREDICTED = (
    "Predicted percent of the floor, and what bounds the pass, from the machine code of its"
    " launches (benchmarks/prediction.py). No GPU has measured any of it."
)


def pivot(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Return the headings and lines of a table of predictions, with a column for each GPU."""
    gpus = [gpu for (gpu,) in grouped(rows, "predicted_for")]
    headings = ["call", "direction", *(f"{gpu}, predicted %" for gpu in gpus)]
    lines = []
    for key, of_pass in grouped(rows, "call", "direction").items():
        cells = {
            row["predicted_for"]: f"{row['predicted_percent']:.0f} {row['predicted_bound']}"
            for row in of_pass
        }
        lines.append([*key, *map(cells.get, gpus)])
    return headings, lines


_SECTIONS: dict[str, Callable[[Sequence[Row]], Iterator[str]]] = {
    "kernels": _kernels,
    "cpu": _plain("CPU", "Ratios are our time over the peer's: below 1 is faster than the peer."),
    "fit": _plain("Training steps", "Medians over the steps of one Lightning fit for each row."),
    "overhead": _plain("What a practice adds", "Per step, over a bare Lightning fit."),
    "prediction": _predictions,
    "static": _plain(
        "Machine code",
        "As the compiler made it; spills are bytes a thread. All columns from predicted for on are"
        " predictions, see benchmarks/prediction.py: nothing was measured.",
    ),
    "other": _plain("Other", "Rows of no kind that this report knows."),
}
