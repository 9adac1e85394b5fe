"""``compare``: join two files of results by row, and list which figures got better or worse."""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from rich.table import Table
from rich.text import Text

from benchmarks import screen
from benchmarks.options import not_negative
from benchmarks.results import Results
from benchmarks.rows import IDENTITY, OURS, Row, cell, is_ok, kind_of, name_of

# The verdicts, in the order in which they are printed.
Verdict = Literal["regression", "not measured now", "gain", "peer slower", "peer faster", "same"]
_ORDER: tuple[Verdict, ...] = get_args(Verdict)
Key = tuple[tuple[str, str], ...]

LEAST_PERCENT = 2.0  # differences of clocks and drivers between two runs exceed the spread in one
_STYLES = {"regression": "bold red", "gain": "green"}


@dataclasses.dataclass(frozen=True)
class _Metric:
    """A field of a row that is compared.

    Attributes:
        name: Name of the field.
        sign: 1 if lower values are better, -1 if higher values are better.
        has_spread: Whether the row's ``spread`` belongs to this field. Fields without a spread have
            the same value in every run of the same code.
    """

    name: str
    sign: int = 1
    has_spread: bool = False


_METRICS: dict[str, tuple[_Metric, ...]] = {
    "kernels": (
        _Metric("microseconds", has_spread=True), _Metric("peak_mib"), _Metric("saved_bytes"),
    ),
    "cpu": (_Metric("ratio", has_spread=True),),
    "fit": (_Metric("milliseconds_per_step", has_spread=True), _Metric("peak_mib")),
    "overhead": (_Metric("microseconds_per_step", has_spread=True),),
    "static": (_Metric("spills"), _Metric("vector_bits", sign=-1), _Metric("bytes_per_element")),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """The change of one field of a row that is in both files.

    Attributes:
        row: The row of the second file; it identifies the change.
        field: Name of the field; ``"status"`` if the row was not measured in one of the files.
        before: Value of the field in the first file.
        after: Value of the field in the second file.
        verdict: Judgement of the change.
        percent: The change relative to ``before``, if both values are numbers and ``before`` is not
            0.
        noise: The smallest change that counts, in the unit of the field.
    """

    row: Row
    field: str
    before: Any
    after: Any
    verdict: Verdict
    percent: float | None = None
    noise: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``compare``."""
    parser.add_argument("before", type=Path, metavar="A.json", help="the results to start from")
    parser.add_argument("after", type=Path, metavar="B.json", help="the results to judge")
    parser.add_argument(
        "--least",
        type=not_negative,
        default=LEAST_PERCENT,
        metavar="PERCENT",
        help="ignore smaller changes, whatever the spread (default: %(default)s)",
    )
    parser.add_argument(
        "--fail-on-regression", action="store_true", help="exit with 1 if there is a regression"
    )


def main(arguments: argparse.Namespace) -> int:
    """Print the changes; return 1 on a regression if asked to, 2 without a common row."""
    try:
        before, after = Results.load(arguments.before), Results.load(arguments.after)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    rows_before, rows_after = by_identity(before.rows), by_identity(after.rows)
    changes = list(compare(rows_before, rows_after, arguments.least))
    screen.console().print(
        "Rule: a change counts if it is larger than the spreads (interquartile ranges) of both runs"
        f" together, and than {arguments.least:g}%. Peers' changes are shown and not judged."
    )
    _print_environments(before.environment, after.environment)
    _print_changes(changes)
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
    """Return the rows by the fields that identify them: op, shape, provider and so on.

    Rows with equal fields are numbered in the order of the file.
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
    """Yield a change for each judged field of each row that is in both files."""
    for key, row in after.items():
        old = before.get(key)
        if old is None:
            continue
        if not (is_ok(old) and is_ok(row)):
            yield _status_change(old, row)
            continue
        for metric in _METRICS.get(kind_of(row), ()):
            if old.get(metric.name) is not None and row.get(metric.name) is not None:
                yield _judge(old, row, metric, least_percent)


def _judge(before: Row, after: Row, metric: _Metric, least_percent: float) -> Change:
    """Compare one field of a row.

    A change counts if it is larger than the spreads (interquartile ranges) of both runs together,
    and larger than ``least_percent`` of the value before.
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
    values = before[metric.name], after[metric.name]
    return Change(after, metric.name, *values, verdict, percent, noise)


def _status_change(before: Row, after: Row) -> Change:
    verdict: Verdict = "same"
    if is_ok(after):
        verdict = "gain" if _is_ours(after) else "same"
    elif is_ok(before):
        broken = after["status"] != "missing" and _is_ours(after)
        verdict = "regression" if broken else "not measured now"
    old, new = (
        " ".join(str(part) for part in (row.get("status", "ok"), row.get("reason")) if part)
        for row in (before, after)
    )
    return Change(after, "status", old, new, verdict)


def _is_ours(row: Row) -> bool:
    """Return whether ``row`` measures this project's code rather than a peer's."""
    return row.get("provider", OURS) == OURS and OURS in str(row.get("variant", OURS))


def _print_environments(before: dict[str, Any], after: dict[str, Any]) -> None:
    names = [name for name in dict.fromkeys((*before, *after)) if name != "date"]
    different = [name for name in names if before.get(name) != after.get(name)]
    if different:
        table = Table("environment", "A", "B", title="The environments differ")
        for name in different:
            table.add_row(name, Text(cell(before.get(name))), Text(cell(after.get(name))))
        screen.console().print(table)


def _print_changes(changes: Sequence[Change]) -> None:
    flagged = [change for change in changes if change.verdict != "same"]
    if flagged:
        table = Table("", "row", "field")
        for heading in ("A", "B", "change", "noise"):
            table.add_column(heading, justify="right")
        for change in sorted(flagged, key=_severity):
            percent = None if change.percent is None else f"{change.percent:+.1f}%"
            values = map(cell, (change.before, change.after, percent, change.noise))
            cells = (change.verdict, name_of(change.row), change.field, *values)
            table.add_row(*map(Text, cells), style=_STYLES.get(change.verdict))
        screen.console().print(table)
    counts = Counter(change.verdict for change in changes)
    screen.say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def _severity(change: Change) -> tuple[int, float]:
    """Return a sort key: regressions first, and the largest changes of each verdict first."""
    return _ORDER.index(change.verdict), -abs(change.percent or float("inf"))


def _print_only(path: Path, rows: Sequence[Row], limit: int = 10) -> None:
    if rows:
        screen.say(f"{len(rows)} rows are only in {path}:")
    for row in rows[:limit]:
        screen.say(f"  {name_of(row)}")
    if len(rows) > limit:
        screen.say(f"  and {len(rows) - limit} more")
