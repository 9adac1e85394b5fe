"""``kernels``: every op against its peers, on this machine's GPU; on small shapes without one."""

import argparse
import math
import sys
import time
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.contenders import Case
from benchmarks.kernel_rows import COPY, CRASHED, TIMEOUT, copy_row, replace
from benchmarks.providers import OURS, PROVIDERS
from benchmarks.race import GpuLostError, Race, Settings
from benchmarks.results import Results, add_out
from benchmarks.shapes import DTYPES, OPS
from benchmarks.timing import Budget, Timer, make_timer, measure_copies

INTERRUPTED = 130
QUICK_MINUTES = 7.5
_CPU_ELEMENTS = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kernels``."""
    peers = list(dict.fromkeys(p.name for p in PROVIDERS if p.name != OURS))
    add = parser.add_argument
    add("--ops", nargs="+", choices=list(OPS), default=list(OPS), help="(default: all)")
    add("--shapes", choices=["quick", "full"], default="quick", help="(default: %(default)s)")
    add("--dtypes", nargs="+", choices=list(DTYPES), help="(default: bf16 if quick, else all)")
    add("--peers", nargs="+", choices=peers, help="(default: all that suit this machine)")
    add("--seconds", type=float, help="of timing per case and direction (default: 0.4, full 1.5)")
    add("--minutes", type=float, help=f"for all (default: {QUICK_MINUTES} if quick, else no limit)")
    add("--resume", action="store_true", help="keep what kernels.json has, go on")
    add_out(parser, "kernels.json")


def main(arguments: argparse.Namespace) -> int:
    """Measure; return 1 if ours was wrong or failed, or the GPU was lost, 130 if interrupted."""
    from benchmarks.report import write

    console = Console(stderr=True, highlight=False)
    try:
        results = Results.create(arguments.out / "kernels.json", arguments.resume)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        console.print(
            "No GPU: wall-clock times on the CPU, shapes made small. They test the harness and are"
            " not a figure of the kernels.",
            soft_wrap=True,
        )
    try:
        lost = _run(arguments, results, console)
    except KeyboardInterrupt:
        kept = f"kept {len(results.rows)} rows in {results.path}, --resume goes on from there"
        print(f"\ninterrupted: {kept}", file=sys.stderr)
        return INTERRUPTED
    write(results, arguments.out)
    unfinished = [row for row in results.rows if row["status"] == TIMEOUT]
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


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return what the command line asks for."""
    quick = arguments.shapes == "quick"
    minutes = arguments.minutes or (QUICK_MINUTES if quick else math.inf)
    return Settings(
        peers=None if arguments.peers is None else tuple(arguments.peers),
        quick=quick,
        budget=Budget(arguments.seconds or (0.4 if quick else 1.5)),
        preparation_seconds=60.0 if quick else 600.0,
        deadline=time.monotonic() + minutes * 60,
    )


def plan(arguments: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Yield the cases, type by type, so that the first types of all ops come first."""
    quick = arguments.shapes == "quick"
    for dtype in arguments.dtypes or (["bf16"] if quick else list(DTYPES)):
        for name in arguments.ops:
            for shape in OPS[name].shapes:
                if quick and not shape.quick:
                    continue
                sized = shape if device.type == "cuda" else shape.shrunk(_CPU_ELEMENTS)
                for layout in shape.layouts:
                    yield Case(name, sized, dtype, layout)


def _run(arguments: argparse.Namespace, results: Results, console: Console) -> str | None:
    """Measure all cases; return why the GPU was lost, ``None`` if it was not."""
    settings = settings_of(arguments)
    timer = make_timer()
    cases = list(plan(arguments, timer.device))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    # No thread of its own: it would take the host's time from what is measured.
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, auto_refresh=False
    ) as progress:
        task = progress.add_task("copy bandwidth", total=len(cases))
        progress.refresh()
        race = Race(timer, results, settings, _record_copies(timer, results, settings))
        for case in cases:
            progress.update(task, description=" ".join(case.key().values()), refresh=True)
            try:
                race.run(case)
            except GpuLostError as error:
                return str(error)
            progress.update(task, advance=1, refresh=True)
    return None


def _record_copies(timer: Timer, results: Results, settings: Settings) -> float:
    """Add the rows of the large copies; return the highest bandwidth in bytes per second."""
    measured = measure_copies(timer, settings.budget)
    replace(results, {"op": COPY}, [copy_row(copy) for copy in measured])
    return max(copy.bandwidth for copy in measured)
