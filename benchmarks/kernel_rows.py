"""The rows that ``kernels`` writes: flat, all of the same fields, ``None`` where not measured."""

import functools
import statistics
from importlib import metadata

from benchmarks.contenders import Contender
from benchmarks.pairs import spread_of
from benchmarks.providers import EAGER, OURS
from benchmarks.results import Results, Row
from benchmarks.timing import Copy

COPY = "copy"  # takes part in every race: the floor in practice, at that very size
CRASHED = "crashed"  # broke the GPU for the whole process: not tried again on that case
TIMEOUT = "timeout"  # no time was left: tried again when the run is resumed
_LAUNCH_BOUND = 0.5  # of the copy bandwidth: where a copy reaches less, bytes are not the limit


def replace(results: Results, key: Row, rows: list[Row]) -> None:
    """Put ``rows`` where those of ``key`` were, in one step: a kill leaves all or none."""
    results.rows = [row for row in results.rows if not key.items() <= row.items()] + rows
    results.save()


_FIELDS = (
    "op", "shape", "dims", "dtype", "layout", "direction", "provider", "version", "status",
    "reason", "timer", "microseconds", "spread", "rounds", "sets", "bytes", "gbytes_per_s",
    "copy_gbytes_per_s", "percent_of_floor", "copy_us", "percent_of_copy", "bound",
    "ratio_to_eager", "ratio_to_best_peer", "best_peer", "host_us", "host_us_over_empty",
    "peak_mib", "saved_bytes", "error", "allowed_error",
)  # fmt: skip


def blank_row() -> Row:
    """Return a row of all fields and no values."""
    return dict.fromkeys(_FIELDS)


def outcome(contender: Contender) -> Row:
    """Return who ``contender`` is and how it fared."""
    note = contender.timed.note if contender.timed is not None else None
    return {
        "provider": contender.provider.name,
        "version": _version(contender.provider.name),
        "status": contender.status,
        "reason": contender.reason or note,
        "error": contender.verdict.error,
        "allowed_error": contender.verdict.allowed,
    }


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def bound(moved: int, copy_us: float, bandwidth: float) -> str:
    """Return what limits a perfect kernel: ``"memory"``, or ``"launch"`` if it is too small."""
    return "memory" if moved / copy_us * 1e6 >= _LAUNCH_BOUND * bandwidth else "launch"


def figures(
    common: Row, contender: Contender, samples: dict[str, list[float]], empty: float | None
) -> Row:
    """Return what was measured of ``contender``; nothing if it did not race to the end."""
    seconds = samples.get(contender.provider.name)
    if contender.timed is None or seconds is None:
        return {}
    median = statistics.median(seconds)
    bandwidth = common["bytes"] / median / 1e9
    host, peak = contender.host_seconds, contender.peak_bytes
    copy_us = common.get("copy_us")
    return {
        "timer": contender.timed.timer,
        "microseconds": median * 1e6,
        "spread": spread_of(seconds) * 1e6,
        "rounds": len(seconds),
        "gbytes_per_s": bandwidth,
        "percent_of_floor": 100 * bandwidth / common["copy_gbytes_per_s"],
        "percent_of_copy": None if copy_us is None else 100 * copy_us / (median * 1e6),
        "host_us": None if host is None else host * 1e6,
        "host_us_over_empty": None if host is None or empty is None else (host - empty) * 1e6,
        "peak_mib": None if peak is None else peak / 2**20,
        "saved_bytes": contender.saved_bytes,
    }


def with_ratios(rows: list[Row]) -> list[Row]:
    """Return ``rows`` with the others' times over each one's: above 1 is faster than they are."""
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


def copy_row(copy: Copy) -> Row:
    """Return the row of a large copy, whose best bandwidth is the floors'."""
    return blank_row() | {
        "op": COPY,
        "shape": f"{copy.bytes >> 20} MiB",
        "dims": [copy.bytes // 8],
        "dtype": "int32",
        "layout": "contiguous",
        "direction": "forward",
        "provider": COPY,
        "status": "ok",
        "timer": copy.timer,
        "microseconds": copy.seconds * 1e6,
        "spread": copy.spread * 1e6,
        "bytes": copy.bytes,
        "gbytes_per_s": copy.bandwidth / 1e9,
    }
