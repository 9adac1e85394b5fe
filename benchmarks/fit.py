"""``fit``: time whole training steps, with and without the practices, compiled or not."""

import argparse
import dataclasses
import gc
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

import lightning_kernels
from benchmarks import overhead, report, screen
from benchmarks.models import ON_CPU, ON_GPU, VARIANTS, Batch, Training, Variant, Workload, train
from benchmarks.options import add_names
from benchmarks.replaced import ShareOfReplacedOps
from benchmarks.results import Results, add_out
from benchmarks.rows import Row, failure, is_ok
from lightning_practices.mixins import FusedLayersMixin
from lightning_practices.timing import Clock, spread_of, take_turns

_PROFILED = 3  # steps of the fit that are profiled


@dataclasses.dataclass(frozen=True)
class Plan:
    """Length of a measurement: ``rounds`` of two fits, each ``steps`` after ``warm_up`` steps."""

    rounds: int
    steps: int
    warm_up: int


FULL = Plan(rounds=5, steps=20, warm_up=5)
SHORT = Plan(rounds=2, steps=5, warm_up=2)


class Steps(Callback):
    """Time each step after the warm-up, without synchronising the device.

    Args:
        device: The device of the fit. On a GPU its events measure the time.
        warm_up: Number of first steps that are not timed.
        clock: Function that returns the time in seconds, for the CPU.
    """

    def __init__(
        self, device: torch.device, warm_up: int, clock: Clock = time.perf_counter
    ) -> None:
        self._cuda = device.type == "cuda"
        self._warm_up, self._clock = warm_up, clock
        self._marks: list[Any] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 < self._warm_up:
            return
        if not self._cuda:
            self._marks.append(self._clock())
            return
        if not self._marks:
            torch.cuda.reset_peak_memory_stats()
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        self._marks.append(mark)

    @property
    def milliseconds(self) -> list[float]:
        """Time from the end of each step to the end of the next, in milliseconds."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if not self._cuda:
            return [(end - start) * 1e3 for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


class _MissingCompilerError(RuntimeError):
    """``torch.compile`` finds no C++ compiler."""


class _Run:
    """One variant of one model, which is fitted repeatedly.

    Attributes:
        milliseconds: Time of every timed step.
        peak_mib: Largest memory use of a fit in MiB; ``None`` on a CPU.
        share: Share of the replaced ops in the time; ``None`` if the profile doesn't name them.
        failed: Status and reason of a failed fit; ``None`` before a failure.
    """

    def __init__(
        self, workload: Workload, variant: Variant, plan: Plan, device: torch.device,
        batches: Sequence[Batch], clock: Clock,
    ) -> None:  # fmt: skip
        self._workload, self._variant, self._plan = workload, variant, plan
        self._device, self._batches, self._clock = device, batches, clock
        self._module: Training | None = None
        self._fitted: nn.Module | None = None
        self.milliseconds: list[float] = []
        self.peak_mib: float | None = None
        self.share: float | None = None
        self.failed: Row | None = None

    @property
    def fused_layers(self) -> int:
        """Number of fused layers."""
        module = self._module
        return len(module.fused_layers.replaced) if isinstance(module, FusedLayersMixin) else 0

    def prepare(self) -> float:
        """Build the model. Compile it, warm it up and profile it in a first fit."""
        return self._guarded(self._prepare)

    def measure(self) -> float:
        """Fit, and return the median milliseconds per step, or nan after a failure."""
        return math.nan if self.failed else self._guarded(self._measure)

    def release(self) -> None:
        """Free the model's memory."""
        self._module = self._fitted = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prepare(self) -> float:
        compiled = self._variant.compiled
        if compiled and self._device.type == "cpu" and not _cxx():
            raise _MissingCompilerError("torch.compile finds no C++ compiler")
        self._module = self._variant.module(self._workload.make_network())
        self._fitted = torch.compile(self._module) if compiled else self._module  # type: ignore[assignment]
        warm_up = self._plan.warm_up
        profiled = ShareOfReplacedOps(self._device, warm_up, warm_up + _PROFILED - 1)
        self._fit(profiled, warm_up + _PROFILED)
        if not (compiled and self._device.type == "cpu"):  # its fused loops have no op names
            self.share = profiled.share
        return math.nan

    def _measure(self) -> float:
        steps = Steps(self._device, self._plan.warm_up, self._clock)
        self._fit(steps, self._plan.warm_up + self._plan.steps)
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            self.peak_mib = max(peak, self.peak_mib or 0.0)
        milliseconds = steps.milliseconds
        self.milliseconds += milliseconds
        return statistics.median(milliseconds)

    def _fit(self, callback: Callback, steps: int) -> None:
        assert self._fitted is not None
        lightning_kernels.set_compiled_norms(self._variant.compiled_norms)
        try:
            train(
                self._fitted, self._batches, self._device, [callback, *self._variant.callbacks()],
                steps=steps, precision=self._workload.precision,
            )  # fmt: skip
        finally:
            lightning_kernels.set_compiled_norms("kernels")

    def _guarded(self, work: Callable[[], float]) -> float:
        try:
            return work()
        except Exception as error:
            missing = isinstance(error, _MissingCompilerError | ModuleNotFoundError)
            self.failed = failure(error, "missing" if missing else "failed")
        self.release()  # after the except clause, where the traceback would keep tensors alive
        return math.nan


def measure_model(
    workload: Workload, variants: Sequence[str], plan: Plan, device: torch.device,
    clock: Clock = time.perf_counter, begin: Callable[[str], None] = lambda label: None,
) -> list[Row]:  # fmt: skip
    """Return a row for each variant. Variants take turns, so that drift affects all of them alike.

    Between its turns a model is in the CPU's memory, where Lightning moves it after a fit.
    """
    batches = workload.make_batches(device)
    runs = {name: _Run(workload, VARIANTS[name], plan, device, batches, clock) for name in variants}
    for run in runs.values():
        begin(workload.name)
        run.prepare()
    rounds = []
    for _ in range(plan.rounds):
        begin(workload.name)
        times = take_turns([run.measure for run in runs.values()])
        rounds.append(dict(zip(runs, times, strict=True)))
    rows = [_row(workload, name, run, rounds) for name, run in runs.items()]
    for run in runs.values():
        run.release()
    torch.compiler.reset()
    return rows


def _row(workload: Workload, name: str, run: _Run, rounds: list[dict[str, float]]) -> Row:
    row: Row = {"model": workload.name, "variant": name}
    if run.failed:
        return {**row, **run.failed}
    milliseconds = statistics.median(run.milliseconds)
    ratios = [times[name] / times["plain"] for times in rounds if "plain" in times]
    comparable = bool(ratios) and not any(map(math.isnan, ratios))
    return {
        **row,
        "status": "ok",
        "reason": None,
        f"{workload.unit}_per_s": round(workload.batch_size / milliseconds * 1e3, 2),
        "milliseconds_per_step": round(milliseconds, 4),
        "spread": round(spread_of(run.milliseconds), 4),
        "ratio_to_plain": round(statistics.median(ratios), 4) if comparable else None,
        "peak_mib": run.peak_mib and round(run.peak_mib, 1),
        "share_of_replaced_ops": run.share and round(run.share, 4),
        "fused_layers": run.fused_layers,
        "batch_size": workload.batch_size,
        "precision": workload.precision,
        "steps": len(run.milliseconds),
    }


def _cxx() -> str | None:
    """Return the path of the C++ compiler that torch would use, or ``None``."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", default))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fit``."""
    models, variants, practices = list(ON_GPU), list(VARIANTS), list(overhead.PRACTICES)
    add_names(parser, "--models", models, metavar="MODEL", or_none=True)
    add_names(parser, "--variants", variants, metavar="VARIANT")
    about = "the practices whose cost per step to measure"
    add_names(parser, "--practices", practices, about, metavar="PRACTICE", or_none=True)
    parser.add_argument("--short", action="store_true", help="a few steps only")
    add_out(parser, "fit.json", resume=True)


def main(arguments: argparse.Namespace) -> int:
    """Measure models, then practices. Return 0 also after failures, which are rows."""
    results = Results.create(arguments.out / "fit.json", arguments.resume)
    plan = SHORT if arguments.short else FULL
    parts = len(arguments.models) * (len(arguments.variants) + plan.rounds)
    with screen.progress(parts + len(arguments.practices)) as begin:
        _measure_models(results, arguments, plan, begin)
        for practice in arguments.practices:
            begin(f"cost of {practice}")
            key = {"practice": practice, "short": arguments.short}
            if not results.find(**key):
                cost = overhead.SHORT if arguments.short else overhead.FULL
                results.add({**key, **overhead.measure(practice, cost)})
    _print(results.rows)
    report.write(results, arguments.out)
    return 0


def _measure_models(
    results: Results, arguments: argparse.Namespace, plan: Plan, begin: Callable[[str], None]
) -> None:
    """Add the rows of the models: all variants of one model, then the next model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workloads = ON_GPU if device.type == "cuda" else ON_CPU
    for model in arguments.models:
        workload = workloads[model]
        key = {"model": workload.name, "short": arguments.short}
        todo = [name for name in arguments.variants if not results.find(**key, variant=name)]
        if todo:
            for row in measure_model(workload, todo, plan, device, begin=begin):
                results.add({**row, "short": arguments.short, "device": device.type})


def _print(rows: Sequence[Row]) -> None:
    """Print the outcome of each row in one line."""
    for row in rows:
        what = row.get("practice") or f"{row['model']}, {row['variant']}"
        if not is_ok(row):
            figures = row["reason"]
        elif "practice" in row:
            figures = (
                "{microseconds_per_step} ± {spread} us a step, {percent_of_20ms_step} % of one of"
                " 20 ms (goal: under 1 %, {said})"
            ).format(**row, said=overhead.verdict_of(row))
        else:
            figures = (
                "{milliseconds_per_step} ± {spread} ms a step, {fused_layers} layers fused"
            ).format(**row)
        screen.say(f"{what}: {figures}")
