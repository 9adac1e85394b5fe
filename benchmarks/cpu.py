"""``cpu``: time each public function and layer on the CPU against the one that it replaces.

Each case is measured on one thread and on two. A lap is short, so that other processes of a busy
machine interrupt few laps, and the median of many laps is of those that nobody interrupted.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import lightning_kernels
from benchmarks import report, screen
from benchmarks.cases import make_calls
from benchmarks.layers import LAYERS
from benchmarks.ops import OPS
from benchmarks.options import add_names
from benchmarks.providers import Inputs
from benchmarks.results import Results, add_out
from benchmarks.rows import EAGER, OURS, Row, Verdict, failure, is_ok, verdict
from benchmarks.shapes import Dims
from benchmarks.timers import CpuTimer, threads
from lightning_practices.timing import Budget, Clock, interleave, spread_of

GOAL = 1.05  # limit of our time, as a multiple of the peer's time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
THREADS = (1, 2)
BUDGET = Budget(seconds=1.5, least=5, most=100)
BLOCK_SECONDS = 1e-3
_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Our function or layer, the peer, and the inputs of both."""

    ours: Callable[..., Any]
    peer: Callable[..., Any]
    our_inputs: Inputs
    peer_inputs: Inputs


def names() -> list[str]:
    """Return the names of the functions and layers that are measured."""
    return [*(name for name, op in OPS.items() if op.cpu), *LAYERS]


def shapes_of(name: str) -> tuple[Dims, ...]:
    """Return the input shapes on which ``name`` is measured."""
    return OPS[name].cpu if name in OPS else LAYERS[name].cpu


def peer_of(name: str) -> str:
    """Return the peer's provider: a layer's package, or ``"eager"`` for a function."""
    package = LAYERS[name].package if name in LAYERS else "benchmarks"
    return EAGER if package == "benchmarks" else package


def pair_of(name: str, dims: Dims, dtype: torch.dtype) -> Pair:
    """Return ``name`` and its peer with random inputs. Layers are in train mode."""
    if name in OPS:
        op = OPS[name]
        drawn = op.draw(dims, "contiguous", dtype, _CPU)
        return Pair(op.ours, op.eager, op.prepare(drawn), op.prepare(drawn))
    layer = LAYERS[name]
    ours, peer = (module.to(dtype) for module in layer.make(dims))
    inputs = tuple(torch.randn(dims, dtype=dtype, requires_grad=True) for _ in range(layer.inputs))
    return Pair(ours, peer, inputs, inputs)


def cases(ops: Sequence[str]) -> Iterator[tuple[Row, Dims]]:
    """Yield each case: the fields that identify its row, and the shape of its input."""
    for name in ops:
        forward_only = name in OPS and "backward" not in OPS[name].directions
        for dims in shapes_of(name):
            shape = "x".join(map(str, dims))
            for dtype in DTYPES:
                for direction in ("forward",) if forward_only else ("forward", "both"):
                    key = {"op": name, "peer": peer_of(name), "shape": shape, "dtype": dtype}
                    for count in THREADS:
                        yield {**key, "direction": direction, "threads": count}, dims


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cpu``."""
    ops = names()
    add_names(parser, "--ops", ops, metavar="OP")
    add_out(parser, "cpu.json", resume=True)


def main(arguments: argparse.Namespace, clock: Clock = time.perf_counter) -> int:
    """Measure every op; return 1 if a measurement raised an error, whatever the ratios."""
    if lightning_kernels.route(torch.empty(1)) != "aten":
        print("cpu measures the route without kernels: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    results = Results.create(arguments.out / "cpu.json", arguments.resume)
    todo = list(cases(arguments.ops))
    with screen.progress(len(todo)) as begin:
        for key, dims in todo:
            begin("{op} {shape} {dtype}, threads: {threads}".format(**key))
            if not results.find(**key):
                results.add({**key, **measure(key, dims, clock)})
    _print_verdict(results.rows)
    report.write(results, arguments.out)
    return 1 if results.find(status="failed") else 0


def measure(key: Row, dims: Dims, clock: Clock = time.perf_counter) -> Row:
    """Return the figures of one case, or the reason for its failure."""
    common: Row = {"route": "aten"}
    timer = CpuTimer(clock, BLOCK_SECONDS)
    laps = {}
    try:
        with threads(key["threads"]), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pair = pair_of(key["op"], dims, DTYPES[key["dtype"]])
            for name, function, inputs in (
                (OURS, pair.ours, pair.our_inputs), (EAGER, pair.peer, pair.peer_inputs),
            ):  # fmt: skip
                grads = [torch.randn_like(function(*inputs))] if key["direction"] == "both" else []
                calls = make_calls(function, [inputs], grads, key["direction"])
                laps[name] = timer.prepare(calls).lap
            samples, errors = interleave(laps, BUDGET, clock)
        for error in errors.values():
            raise error
    except Exception as error:
        return {**common, **failure(error)}
    ratios = [ours / peer for ours, peer in zip(samples[OURS], samples[EAGER], strict=True)]
    ratio = statistics.median(ratios)
    return {
        **common,
        "status": "ok",
        "reason": None,
        "ratio": round(ratio, 4),
        "spread": round(spread_of(ratios), 4),
        "microseconds": round(statistics.median(samples[OURS]) * 1e6, 3),
        "peer_microseconds": round(statistics.median(samples[EAGER]) * 1e6, 3),
        "verdict": verdict(ratio, spread_of(ratios), GOAL),
    }


_IDENTITY = ("op", "peer", "shape", "dtype", "direction", "threads")
_HIDDEN: Verdict = "can't tell"
_HEADINGS = (*_IDENTITY, "us", "peer's us", "ratio", "noise", "verdict")


def _print_verdict(rows: Sequence[Row]) -> None:
    """Print a table of all rows, and count the verdicts."""
    counts: Counter[Verdict] = Counter()
    lines = []
    for row in rows:
        # A file of an older version may lack fields.
        identity = [row.get(name) for name in _IDENTITY]
        if not is_ok(row):
            lines.append([*identity, None, None, None, None, row["reason"]])
            continue
        said = verdict(row["ratio"], row["spread"], GOAL)
        counts[said] += 1
        times = row["microseconds"], row.get("peer_microseconds")
        figures = (f"{row[name]:.3f}" for name in ("ratio", "spread"))
        lines.append([*identity, *times, *figures, said])
    screen.say(report.table(_HEADINGS, lines, text_columns=len(_IDENTITY)))
    screen.say(
        f"{counts.total()} pairs, {counts['within']} of them within the goal of {GOAL} times the"
        f" peer's time, {counts['above']} above it. For {counts[_HIDDEN]} it can't be told: the"
        " goal is within the noise of the ratio, which is the interquartile range over the rounds."
    )
