"""Rows of results: their kinds, the fields that identify them, and their format in tables."""

import math
from collections.abc import Iterable
from typing import Any, Literal

Row = dict[str, Any]
Verdict = Literal["within", "above", "can't tell"]

OURS = "ours"
EAGER = "eager"
COPY = "copy"  # the op of the rows that measure the copy bandwidth

BOUNDS = ("memory", "issue", "latency", "launch")  # what a prediction names as the limit

# The fields that identify a row among the rows of its kind, in the order of the tables' columns.
IDENTITY = (
    "op", "call", "kernel", "launch", "target", "predicted_for", "model", "practice", "dtype",
    "layout", "direction", "shape", "peer", "threads", "variant", "provider", "device", "short",
    "batch_size", "precision",
)  # fmt: skip

_KIND_OF_FIELD = {
    "provider": "kernels",
    "peer": "cpu",
    "practice": "overhead",
    "variant": "fit",
    "kernel": "static",
    "predicted_for": "prediction",
}


def kind_of(row: Row) -> str:
    """Return the kind of ``row``: kernels, cpu, fit, overhead, static, prediction or other."""
    return next((kind for field, kind in _KIND_OF_FIELD.items() if field in row), "other")


def verdict(value: float, spread: float, goal: float) -> Verdict:
    """Return whether a measured value is within a goal, or too uncertain to say so.

    Args:
        value: The median of the measurements.
        spread: Their interquartile range.
        goal: The largest value within the goal.
    """
    if abs(value - goal) <= spread:
        return "can't tell"
    return "within" if value < goal else "above"


def is_ok(row: Row) -> bool:
    """Return whether ``row`` was measured."""
    return bool(row.get("status", "ok") == "ok")


def failure(error: BaseException, status: str = "failed") -> Row:
    """Return the fields of a row without figures, whose measurement raised ``error``."""
    return {"status": status, "reason": first_line(error)}


def first_line(error: BaseException) -> str:
    """Return the type of ``error`` and the first line of its message."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


def name_of(row: Row) -> str:
    """Return the values of the fields that identify ``row``."""
    return " ".join(cell(row[name]) for name in IDENTITY if row.get(name) is not None)


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows grouped by their values of ``fields``, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple("" if row.get(field) is None else cell(row[field]) for field in fields)
        groups.setdefault(key, []).append(row)
    return groups


def providers_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of the providers, ours first."""
    return sorted({str(row["provider"]) for row in rows}, key=lambda name: (name != OURS, name))


def numbers(rows: Iterable[Row], field: str) -> list[float]:
    """Return the values of ``field``, except ``None``."""
    return [float(row[field]) for row in rows if row.get(field) is not None]


def cell(value: Any, digits: int = 3) -> str:
    """Return ``value`` as text: floats with three significant digits, a dash for ``None``."""
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
