"""What a file of results says, for people: tables in Markdown and plots in PNG."""

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.results import Results, Row

OURS = "ours"
COPY = "copy"  # the op of the rows that measure the bandwidth
STATUSES = {
    "missing": "not installed, or without this op",
    "failed": "raised an error",
    "wrong": "gave a wrong result, so it was not timed",
    "crashed": "ended the process or broke the GPU's context",
    "skipped": "left out on purpose",
    "timeout": "took longer than it may, or no time was left",
}
_WIDTH = 160  # columns of a table that no terminal limits

# What tells one row of a kind from another, in the order of reading.
IDENTITY = (
    "op", "call", "kernel", "launch", "target", "model", "practice", "dtype", "layout", "direction",
    "shape", "peer", "variant", "provider", "device", "short", "batch_size", "precision",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of results")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: beside each file)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Write the report of every file; return 2 if one cannot be read."""
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
    """Write the tables and the plots of ``results``, named after its file.

    Args:
        results: The results of one command. Rows may be of several kinds.
        out: The folder, made if need be.

    Returns:
        The files written, the Markdown first.
    """
    from benchmarks import plots  # not before it is needed: matplotlib takes a while

    out.mkdir(parents=True, exist_ok=True)
    stem = results.path.stem
    images = plots.draw(results.rows, out / stem)
    text = markdown(results)
    for image in images:
        title = image.stem.removeprefix(f"{stem}_").replace("_", " ")
        text += f"\n![{title}]({image.name})\n"
    path = out / f"{stem}.md"
    path.write_text(text)
    return [path, *images]


def markdown(results: Results) -> str:
    """Return the tables of ``results``, each kind of row under a heading of its own."""
    parts = [f"# {results.path.stem.replace('_', ' ').capitalize()}", describe(results)]
    for kind, section in _SECTIONS.items():
        rows = [row for row in results.rows if kind_of(row) == kind]
        if rows:
            parts += section(rows)
    if not results.rows:
        parts.append("No rows.")
    return "\n\n".join(parts) + "\n"


def kind_of(row: Row) -> str:
    """Return which command wrote ``row``: kernels, cpu, fit, overhead or static."""
    for field, kind in _FIELDS.items():
        if field in row:
            return kind
    return "other"


_FIELDS = {
    "provider": "kernels",
    "peer": "cpu",
    "practice": "overhead",
    "variant": "fit",
    "kernel": "static",
}


def describe(results: Results) -> str:
    """Return one sentence on where and with what ``results`` were measured."""
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
    """Return a Markdown table, its columns after the first ``text_columns`` to the right."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(headings))]
    lines = [headings, rule, *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def cell(value: Any, digits: int = 3) -> str:
    """Return ``value`` for a table: three significant digits, a dash for ``None``."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{min(decimals, 6)}f}"
        return text.partition(".")[0] if value == int(value) else text
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return str(value)


def console() -> Console:
    """Return a console wide enough for the tables where no terminal says how wide it is."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(width=_WIDTH, highlight=False)


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by their values of ``fields``, in the order of their first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple("" if row.get(field) is None else cell(row[field]) for field in fields)
        groups.setdefault(key, []).append(row)
    return groups


def providers_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of the providers, ours first."""
    return sorted({str(row["provider"]) for row in rows}, key=lambda name: (name != OURS, name))


def geometric_mean(values: Sequence[float]) -> float | None:
    """Return the geometric mean, ``None`` of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def numbers(rows: Iterable[Row], field: str) -> list[float]:
    """Return the values of ``field`` that were measured."""
    return [float(row[field]) for row in rows if row.get(field) is not None]


SUMMARY_HEADINGS = (
    "op", "dtype", "direction", "cases", "% of floor, median", "% of floor, largest case",
    "vs. best peer", "vs. best peer, worst case", "vs. eager",
)  # fmt: skip


def summarise(rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
    """Yield a line of :data:`SUMMARY_HEADINGS` for each op, type and direction of ours."""
    ours = [row for row in rows if row.get("provider") == OURS and row["status"] == "ok"]
    for key, group in grouped(ours, "op", "dtype", "direction").items():
        floor, peer, eager = (
            numbers(group, field)
            for field in ("percent_of_floor", "ratio_to_best_peer", "ratio_to_eager")
        )
        largest = max(group, key=lambda row: row["microseconds"] * (row.get("gbytes_per_s") or 0))
        yield (
            *key, len(group), statistics.median(floor) if floor else None,
            largest.get("percent_of_floor"), geometric_mean(peer), min(peer, default=None),
            geometric_mean(eager),
        )  # fmt: skip


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
        if op == COPY:
            yield "## Copies"
            yield "Bytes read plus bytes written; the fastest is what the floors are taken from."
            fields = ("shape", "gbytes_per_s", "microseconds", "spread")
            copies = ([row.get(field) for field in fields] for row in of_op)
            yield table(("moved", "GB/s", "microseconds", "spread"), copies)
            continue
        names = providers_of(of_op)
        yield f"## {op}"
        yield "Microseconds of each provider; what follows them is of ours."
        headings = ["dtype", "layout", "direction", "shape", *names]
        more = ["percent_of_floor", "ratio_to_best_peer", "host_us", "peak_mib", "saved_bytes"]
        lines = []
        for key, case in grouped(of_op, "dtype", "layout", "direction", "shape").items():
            by_name = {row["provider"]: row for row in case}
            ours = by_name.get(OURS, {})
            times = (_time(by_name.get(name)) for name in names)
            lines.append([*key, *times, *(ours.get(field) for field in more)])
        units = ["% of floor", "vs. best peer", "host us", "peak MiB", "saved bytes"]
        yield table([*headings, *units], lines, text_columns=4)


def _time(row: Row | None) -> Any:
    """Return the microseconds; the status where there are none."""
    if row is None:
        return None
    return row["microseconds"] if row["status"] == "ok" else row["status"]


def not_measured(rows: Sequence[Row]) -> list[str]:
    """Return the section on what was not measured and why; nothing if all was."""
    left = [row for row in rows if row.get("status", "ok") != "ok"]
    if not left:
        return []
    fields = [name for name in ("op", "model", "variant", "provider") if name in left[0]]
    groups = Counter(
        tuple(cell(row.get(name)) for name in (*fields, "status", "reason")) for row in left
    )
    statuses = dict.fromkeys(row["status"] for row in left)
    meanings = [f"{status}: {STATUSES[status]}" for status in statuses if status in STATUSES]
    lines = [(*key, count) for key, count in groups.items()]
    columns = [*fields, "status", "reason", "cases"]
    return [
        "## Not measured",
        *([f"{'; '.join(meanings).capitalize()}."] if meanings else []),
        table(columns, lines, text_columns=len(columns) - 1),
    ]


def _plain(title: str, note: str, ignored: Sequence[str] = ("status", "reason")) -> Any:
    """Return a section that is one table of all fields."""

    def section(rows: Sequence[Row]) -> Iterator[str]:
        yield f"## {title}"
        yield note
        fields = list(dict.fromkeys(name for row in rows for name in row if name not in ignored))
        identity = [name for name in fields if name in IDENTITY]
        headings = [*identity, *(name for name in fields if name not in IDENTITY)]
        good = (row for row in rows if row.get("status", "ok") == "ok")
        lines = ([row.get(name) for name in headings] for row in good)
        yield table([name.replace("_", " ") for name in headings], lines, len(identity))
        yield from not_measured(rows)

    return section


_SECTIONS: dict[str, Callable[[Sequence[Row]], Iterator[str]]] = {
    "kernels": _kernels,
    "cpu": _plain("CPU", "Ratios are our time over the peer's: below 1 is faster than the peer."),
    "fit": _plain("Training steps", "Medians over the steps of one Lightning fit for each row."),
    "overhead": _plain("What a practice adds", "Per step, over a bare Lightning fit."),
    "static": _plain("Machine code", "As the compiler made it; spills are bytes a thread."),
    "other": _plain("Other", "Rows of no kind that this report knows."),
}
