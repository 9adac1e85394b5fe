"""``cpu``: what each public function costs on the CPU, against what it replaces, pair by pair."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import lightning_kernels
from benchmarks.cpu_drops import DROPS_AND_CLIPS
from benchmarks.cpu_norms import NORMS
from benchmarks.cpu_op import Direction, Op, Shape
from benchmarks.pairs import compare
from benchmarks.results import Results, Row, add_out

GOAL = 1.05  # at most this many times what the peer takes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPS: dict[str, Op] = {**NORMS, **DROPS_AND_CLIPS}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row to measure."""

    op: str
    shape: Shape
    dtype: str
    direction: Direction

    @property
    def key(self) -> Row:
        """What tells its row from the others."""
        shape = "x".join(map(str, self.shape))
        key = {"op": self.op, "peer": OPS[self.op].peer, "shape": shape}
        return {**key, "dtype": self.dtype, "direction": self.direction}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cpu``."""
    parser.add_argument(
        "--ops", nargs="+", choices=list(OPS), default=list(OPS), help="(default: all)"
    )
    add_out(parser, "cpu.json")
    parser.add_argument("--resume", action="store_true", help="keep what cpu.json has, go on")


def main(arguments: argparse.Namespace) -> int:
    """Measure every op; return 1 if one of them raised, whatever the ratios."""
    from benchmarks import report

    if lightning_kernels.route(torch.empty(1)) != "aten":
        print("cpu measures the route without kernels: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    results = Results.create(arguments.out / "cpu.json", arguments.resume)
    console = Console()
    measure(results, list(cases(arguments.ops)), console)
    _print_verdict(results.rows, console)
    report.write(results, arguments.out)
    return 1 if results.find(status="failed") else 0


def cases(ops: list[str]) -> Iterator[Case]:
    """Yield what to measure."""
    for name in ops:
        op = OPS[name]
        for shape in op.shapes:
            for dtype in DTYPES:
                for direction in op.directions:
                    yield Case(name, shape, dtype, direction)


def measure(results: Results, todo: list[Case], console: Console) -> None:
    """Add a row for each case that has none yet."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("cpu", total=len(todo))
        for case in todo:
            progress.update(task, description=f"{case.op} {case.key['shape']} {case.dtype}")
            if not results.find(**case.key):
                results.add({**case.key, **_measure(case)})
            progress.advance(task)


def _measure(case: Case) -> Row:
    """Return the figures of one case, or why there are none."""
    row: Row = {"threads": torch.get_num_threads(), "route": "aten"}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pair = OPS[case.op].make(case.shape, DTYPES[case.dtype])
            ours, peer = (_directed(call, pair.inputs, case) for call in (pair.ours, pair.peer))
            comparison = compare(ours, peer)
    except Exception as error:
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {
        **row,
        "status": "ok",
        "reason": None,
        "ratio": round(comparison.ratio, 4),
        "spread": round(comparison.spread, 4),
        "microseconds": round(comparison.seconds * 1e6, 3),
        "peer_microseconds": round(comparison.peer_seconds * 1e6, 3),
        "above_goal": comparison.ratio > GOAL,
    }


def _directed(
    call: Callable[[], Any], inputs: tuple[Tensor, ...], case: Case
) -> Callable[[], object]:
    """Return ``call``, followed by its backward pass if the case has both."""
    if case.direction == "forward":
        return call
    y: Tensor = call()
    grad = torch.randn_like(y)
    reached = [
        x
        for x, gradient in zip(
            inputs, torch.autograd.grad(y, inputs, grad, allow_unused=True), strict=True
        )
        if gradient is not None
    ]
    return lambda: torch.autograd.grad(call(), reached, grad)


def _print_verdict(rows: list[Row], console: Console) -> None:
    """Say which rows are above the goal, and which failed."""
    measured = [row for row in rows if row["status"] == "ok"]
    above = [row for row in measured if row["above_goal"]]
    for row in rows:
        what = "{op} against {peer}, {shape} {dtype} {direction}".format(**row)
        if row["status"] != "ok":
            console.print(f"{what}: {row['reason']}", markup=False, soft_wrap=True)
        elif row["above_goal"]:
            figures = "{ratio:.3f} ± {spread:.3f}, {microseconds} us".format(**row)
            console.print(f"{what}: {figures}", markup=False, soft_wrap=True)
    console.print(
        f"{len(measured)} pairs, {len(measured) - len(above)} of them within the goal of {GOAL}"
        f" times the peer's time, {len(above)} above it",
        soft_wrap=True,
    )
