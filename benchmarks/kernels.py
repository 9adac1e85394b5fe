"""``kernels``: time every op against its peers on this GPU, or with small shapes on the CPU."""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator

import torch

import lightning_kernels
from benchmarks import report, screen
from benchmarks.cases import Case
from benchmarks.kernel_rows import CRASHED, TIMEOUT, blank_row
from benchmarks.ops import DTYPES, OPS
from benchmarks.options import add_names, positive
from benchmarks.race import GpuLostError, Race, Settings, copies
from benchmarks.results import Results, add_out
from benchmarks.rows import COPY, OURS, Row
from benchmarks.timers import Timer, make_timer
from lightning_practices.timing import Budget, Clock, interleave, spread_of

INTERRUPTED = 130
QUICK_MINUTES = 7.5
_CPU_ELEMENTS = 1 << 16
_GPU_COPIES = (256 << 20, 512 << 20, 1 << 30, 2 << 30)  # bytes that a copy reads and writes
_CPU_COPIES = (8 << 20, 32 << 20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kernels``."""
    ops = [name for name, op in OPS.items() if op.shapes]
    peers = list(dict.fromkeys(p.name for op in OPS.values() for p in op.providers))[1:]
    add = parser.add_argument
    add_names(parser, "--ops", ops, metavar="OP")
    add("--shapes", choices=["quick", "full"], default="quick", help="(default: %(default)s)")
    default = "bf16 if quick, else all"
    add_names(parser, "--dtypes", list(DTYPES), metavar="DTYPE", default=default)
    default = "all that suit this machine"
    add_names(parser, "--peers", peers, metavar="PEER", default=default)
    add(
        "--seconds", type=positive, help="of timing per case and direction (default: 0.4, full 1.5)"
    )
    add(
        "--minutes",
        type=positive,
        help=f"for all (default: {QUICK_MINUTES} if quick, else no limit)",
    )
    add_out(parser, "kernels.json", resume=True)


def main(
    arguments: argparse.Namespace, timer: Timer | None = None, clock: Clock = time.monotonic
) -> int:
    """Measure. Return 1 if our code was wrong or failed or the GPU was lost, 130 if interrupted."""
    try:
        results = Results.create(arguments.out / "kernels.json", arguments.resume)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    lightning_kernels.set_kernel_policy("always")
    if not torch.cuda.is_available():
        print(
            "No GPU: wall-clock times on the CPU, of shapes made small. They test the benchmarks"
            " and are not figures of the kernels.",
            file=sys.stderr,
        )
    try:
        lost = _run(arguments, results, timer or make_timer(), clock)
    except KeyboardInterrupt:
        kept = f"kept {len(results.rows)} rows in {results.path}, --resume goes on from there"
        print(f"\ninterrupted: {kept}", file=sys.stderr)
        return INTERRUPTED
    report.write(results, arguments.out)
    unfinished = results.find(status=TIMEOUT)
    if lost:
        print(f"{lost}; --resume goes on without that provider on that case", file=sys.stderr)
    elif unfinished:
        print(f"{len(unfinished)} rows had no time left: --resume goes on", file=sys.stderr)
    print(f"{len(results.rows)} rows in {results.path}")
    ours = results.find(provider=OURS)
    bad = [row for row in ours if row["status"] in ("wrong", "failed", "missing", CRASHED)]
    for row in bad:
        print("ours is {status}: {op} {shape} {dtype} {reason}".format(**row), file=sys.stderr)
    return 1 if bad or lost else 0


def plan(arguments: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Yield the cases dtype by dtype, so that all ops are measured in the first dtypes."""
    quick = arguments.shapes == "quick"
    for dtype in arguments.dtypes or (["bf16"] if quick else list(DTYPES)):
        for name in arguments.ops:
            for shape in OPS[name].shapes:
                if quick and not shape.quick:
                    continue
                sized = shape if device.type == "cuda" else shape.shrunk(_CPU_ELEMENTS)
                for layout in shape.layouts:
                    yield Case(name, sized, dtype, layout)


def _run(arguments: argparse.Namespace, results: Results, timer: Timer, clock: Clock) -> str | None:
    """Measure all cases; return why the GPU was lost, or ``None`` if it was not lost."""
    quick = arguments.shapes == "quick"
    minutes = arguments.minutes or (QUICK_MINUTES if quick else math.inf)
    settings = Settings(
        peers=None if arguments.peers is None else tuple(arguments.peers),
        quick=quick,
        budget=Budget(arguments.seconds or (0.4 if quick else 1.5)),
        preparation_seconds=60.0 if quick else 600.0,
        deadline=clock() + minutes * 60,
    )
    cases = list(plan(arguments, timer.device))
    with screen.progress(1 + len(cases)) as begin:
        begin("copy bandwidth")
        rows = measure_copies(timer, settings.budget, clock)
        results.replace({"op": COPY}, rows)
        bandwidth = max(row["gbytes_per_s"] for row in rows) * 1e9
        race = Race(timer, results, settings, bandwidth, clock)
        for case in cases:
            begin(" ".join(case.key().values()))
            try:
                race.run(case)
            except GpuLostError as error:
                return str(error)
    return None


def measure_copies(timer: Timer, budget: Budget, clock: Clock = time.perf_counter) -> list[Row]:
    """Return a row for copies of each large size. The highest bandwidth determines the floors."""
    rows: list[Row] = []
    for moved in _GPU_COPIES if timer.device.type == "cuda" else _CPU_COPIES:
        if moved * 5 > timer.free_bytes() and rows:
            break
        with timer.context():
            calls = copies(moved, 4, timer.device)
        prepared = timer.prepare(calls)
        samples, errors = interleave({COPY: prepared.lap}, budget, clock)
        if errors:
            raise errors[COPY]
        seconds = statistics.median(samples[COPY])
        rows.append(
            blank_row()
            | {
                "op": COPY, "shape": f"{moved >> 20} MiB", "dims": [moved // 8], "dtype": "int32",
                "layout": "contiguous", "direction": "forward", "provider": COPY, "status": "ok",
                "timer": prepared.timer, "microseconds": seconds * 1e6, "bytes": moved,
                "spread": spread_of(samples[COPY]) * 1e6, "gbytes_per_s": moved / seconds / 1e9,
            }
        )  # fmt: skip
    return rows
