"""The rows that ``kernels`` writes. All have the same fields, with ``None`` if not measured."""

import statistics
from collections.abc import Sequence

from benchmarks.rows import EAGER, OURS, Row
from lightning_practices.timing import spread_of

CRASHED = "crashed"  # broke the GPU for the whole process; not tried again on this case
TIMEOUT = "timeout"  # no time was left; tried again when the run is resumed
# Share of the copy bandwidth. A copy that reaches less is limited by its launch, not by bytes.
_LAUNCH_BOUND = 0.5
_FIELDS = (
    "op", "shape", "dims", "dtype", "layout", "direction", "provider", "version", "status",
    "reason", "timer", "microseconds", "spread", "rounds", "sets", "bytes", "gbytes_per_s",
    "copy_gbytes_per_s", "percent_of_floor", "copy_us", "percent_of_copy", "bound",
    "ratio_to_eager", "ratio_to_best_peer", "best_peer", "host_us", "host_us_over_empty",
    "peak_mib", "saved_bytes", "error", "allowed_error",
)  # fmt: skip


def blank_row() -> Row:
    """Return a row with all fields and no values."""
    return dict.fromkeys(_FIELDS)


def bound(moved: int, copy_us: float, bandwidth: float) -> str:
    """Return the limit of a perfect kernel: ``"memory"``, or ``"launch"`` for few bytes."""
    return "memory" if moved / copy_us * 1e6 >= _LAUNCH_BOUND * bandwidth else "launch"


def figures(row: Row, seconds: Sequence[float]) -> Row:
    """Return the figures of rounds that took ``seconds``, for the case of ``row``."""
    median = statistics.median(seconds)
    bandwidth = row["bytes"] / median / 1e9
    more: Row = {}
    if row["copy_gbytes_per_s"]:
        more["percent_of_floor"] = 100 * bandwidth / row["copy_gbytes_per_s"]
    if row["copy_us"]:
        more["percent_of_copy"] = 100 * row["copy_us"] / (median * 1e6)
    return {
        "microseconds": median * 1e6,
        "spread": spread_of(seconds) * 1e6,
        "rounds": len(seconds),
        "gbytes_per_s": bandwidth,
        **more,
    }


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Return ``rows`` with ratios: another provider's time divided by the row's own time."""
    times = {row["provider"]: row["microseconds"] for row in rows if row["status"] == "ok"}
    peers = {name: time for name, time in times.items() if name != OURS}
    best = min(peers, key=lambda name: peers[name], default=None)
    ratios = []
    for row in rows:
        more: Row = {}
        if row["status"] == "ok" and EAGER in times:
            more["ratio_to_eager"] = times[EAGER] / row["microseconds"]
        if row["status"] == "ok" and row["provider"] == OURS and best is not None:
            more |= {"best_peer": best, "ratio_to_best_peer": peers[best] / row["microseconds"]}
        ratios.append({**row, **more})
    return ratios
