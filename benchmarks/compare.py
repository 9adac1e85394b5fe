"""Two files of results, joined row by row: what got slower, what got faster."""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from benchmarks import report
from benchmarks.report import IDENTITY, OURS, cell, kind_of
from benchmarks.results import Results, Row

Verdict = Literal["regression", "gain", "peer slower", "peer faster", "not measured now", "same"]
Key = tuple[tuple[str, str], ...]

LEAST_PERCENT = 2.0  # clocks and drivers differ between two runs by more than within one
_STYLES = {"regression": "bold red", "gain": "green"}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A field that is judged.

    Attributes:
        name: The field.
        sign: 1 if less is better, -1 if more is.
        has_spread: Whether the row's ``spread`` is of this field, in the same unit; else the field
            is the same in every run of the same code.
    """

    name: str
    sign: int = 1
    has_spread: bool = False


METRICS: dict[str, tuple[Metric, ...]] = {
    "kernels": (
        Metric("microseconds", has_spread=True), Metric("peak_mib"), Metric("saved_bytes"),
    ),
    "cpu": (Metric("ratio", has_spread=True),),
    "fit": (Metric("milliseconds_per_step", has_spread=True), Metric("peak_mib")),
    "overhead": (Metric("microseconds_per_step", has_spread=True),),
    "static": (Metric("spills"), Metric("vector_bits", sign=-1), Metric("bytes_per_element")),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """One field of one row in both files.

    Attributes:
        row: The row of the second file, for its identity.
        field: The field, ``"status"`` if one of the two has no measurement.
        before: Its value in the first file.
        after: Its value in the second.
        percent: The change relative to ``before``, if both are numbers and ``before`` is not 0.
        noise: The least change that counts, in the unit of the field.
        verdict: What to make of it.
    """

    row: Row
    field: str
    before: Any
    after: Any
    percent: float | None
    noise: float
    verdict: Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``compare``."""
    parser.add_argument("before", type=Path, metavar="A.json", help="the results to start from")
    parser.add_argument("after", type=Path, metavar="B.json", help="the results to judge")
    parser.add_argument(
        "--least",
        type=float,
        default=LEAST_PERCENT,
        metavar="PERCENT",
        help="ignore smaller changes, whatever the spread (default: %(default)s)",
    )
    parser.add_argument(
        "--fail-on-regression", action="store_true", help="exit with 1 if there is a regression"
    )


def main(arguments: argparse.Namespace) -> int:
    """Print what changed; return 1 on a regression if asked to, 2 if there is nothing to join."""
    try:
        before, after = Results.load(arguments.before), Results.load(arguments.after)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    rows_before, rows_after = by_identity(before.rows), by_identity(after.rows)
    changes = list(compare(rows_before, rows_after, arguments.least))
    _print(before, after, changes, arguments.least)
    for path, ours, others in (
        (arguments.before, rows_before, rows_after),
        (arguments.after, rows_after, rows_before),
    ):
        _print_only(path, [row for key, row in ours.items() if key not in others])
    if not changes:
        print("the two files have no row in common", file=sys.stderr)
        return 2
    worse = any(change.verdict == "regression" for change in changes)
    return 1 if worse and arguments.fail_on_regression else 0


def by_identity(rows: Sequence[Row]) -> dict[Key, Row]:
    """Return the rows by what tells them apart: op, shape, provider and so on, never a figure.

    Rows that nothing tells apart are numbered in the order of the file.
    """
    found: dict[Key, Row] = {}
    seen: Counter[Key] = Counter()
    for row in rows:
        fields = [(name, cell(row[name])) for name in IDENTITY if row.get(name) is not None]
        key = (("kind", kind_of(row)), *fields)
        found[(*key, ("repeat", str(seen[key])))] = row
        seen[key] += 1
    return found


def compare(
    before: dict[Key, Row], after: dict[Key, Row], least_percent: float = LEAST_PERCENT
) -> Iterator[Change]:
    """Yield a change for each judged field of each row that is in both."""
    for key, row in after.items():
        if key not in before:
            continue
        old = before[key]
        if not (_is_ok(old) and _is_ok(row)):
            yield _status_change(old, row)
            continue
        for metric in METRICS.get(kind_of(row), ()):
            if old.get(metric.name) is not None and row.get(metric.name) is not None:
                yield judge(old, row, metric, least_percent)


def judge(before: Row, after: Row, metric: Metric, least_percent: float = LEAST_PERCENT) -> Change:
    """Compare one field.

    A change counts if it is larger than the spreads (interquartile ranges) of both runs together,
    and than ``least_percent`` of the value before.
    """
    old, new = float(before[metric.name]), float(after[metric.name])
    noise = abs(old) * least_percent / 100
    if metric.has_spread:
        noise = max(noise, (before.get("spread") or 0.0) + (after.get("spread") or 0.0))
    verdict: Verdict = "same"
    if abs(new - old) > noise:
        worse = (new - old) * metric.sign > 0
        if _is_ours(after):
            verdict = "regression" if worse else "gain"
        else:
            verdict = "peer slower" if worse else "peer faster"
    percent = 100 * (new - old) / abs(old) if old else None
    return Change(
        after, metric.name, before[metric.name], after[metric.name], percent, noise, verdict
    )


def _status_change(before: Row, after: Row) -> Change:
    verdict: Verdict = "same"
    if _is_ok(after):
        verdict = "gain" if _is_ours(after) else "same"
    elif _is_ok(before):
        broken = after["status"] != "missing" and _is_ours(after)
        verdict = "regression" if broken else "not measured now"
    old, new = (
        " ".join(str(part) for part in (row.get("status", "ok"), row.get("reason")) if part)
        for row in (before, after)
    )
    return Change(after, "status", old, new, None, 0.0, verdict)


def _is_ok(row: Row) -> bool:
    return bool(row.get("status", "ok") == "ok")


def _is_ours(row: Row) -> bool:
    """Return whether ``row`` is of this project's own code, and not of a peer."""
    return row.get("provider", OURS) == OURS and OURS in str(row.get("variant", OURS))


def _print(before: Results, after: Results, changes: Sequence[Change], least: float) -> None:
    screen = report.console()
    screen.print(
        "Rule: a change counts if it is larger than the spreads (interquartile ranges) of both"
        f" runs together, and than {least:g}%. Peers' changes are shown and not judged."
    )
    names = dict.fromkeys((*before.environment, *after.environment))
    pairs = [(name, before.environment.get(name), after.environment.get(name)) for name in names]
    different = [pair for pair in pairs if pair[1] != pair[2] and pair[0] != "date"]
    if different:
        table = Table("environment", "A", "B", title="The environments differ")
        for pair in different:
            table.add_row(*(Text(cell(value)) for value in pair))
        screen.print(table)
    flagged = [change for change in changes if change.verdict != "same"]
    if flagged:
        table = Table("", "row", "field")
        for heading in ("A", "B", "change", "noise"):
            table.add_column(heading, justify="right")
        for change in sorted(flagged, key=_severity):
            percent = None if change.percent is None else f"{change.percent:+.1f}%"
            noise = change.noise if change.field != "status" else None
            values = (cell(value) for value in (change.before, change.after, percent, noise))
            cells = (change.verdict, _name(change.row), change.field, *values)
            table.add_row(*map(Text, cells), style=_STYLES.get(change.verdict))
        screen.print(table)
    counts = Counter(change.verdict for change in changes)
    screen.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def _severity(change: Change) -> tuple[int, float]:
    """Sort regressions first, the largest of each first."""
    order = ("regression", "not measured now", "gain", "peer slower", "peer faster", "same")
    return order.index(change.verdict), -abs(change.percent or float("inf"))


def _name(row: Row) -> str:
    return " ".join(cell(row[name]) for name in IDENTITY if row.get(name) is not None)


def _print_only(path: Path, rows: Sequence[Row], limit: int = 10) -> None:
    if not rows:
        return
    screen = report.console()
    screen.print(f"{len(rows)} rows are only in {path}:", markup=False)
    for row in rows[:limit]:
        screen.print(f"  {_name(row)}", markup=False)
    if len(rows) > limit:
        screen.print(f"  and {len(rows) - limit} more")
