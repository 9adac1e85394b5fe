"""``fit``: whole training steps, with the practices and without, compiled or not."""

import argparse
import dataclasses
import functools
import gc
import math
import os
import pkgutil
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

import lightning_kernels
from benchmarks import overhead
from benchmarks.models import ON_CPU, ON_GPU, VARIANTS, Batch, Training, Variant, Workload, train
from benchmarks.pairs import interleave, spread_of
from benchmarks.replaced import REPLACED
from benchmarks.results import Results, Row, add_out
from lightning_practices.mixins import FusedLayersMixin

_PROFILED = 3  # steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to measure: ``rounds`` of two fits, each ``steps`` long after ``warm_up`` steps."""

    rounds: int
    steps: int
    warm_up: int


FULL = Plan(rounds=5, steps=20, warm_up=5)
SHORT = Plan(rounds=2, steps=5, warm_up=2)


class Steps(Callback):
    """Time each step after the warm-up, without making the device wait."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self._cuda = device.type == "cuda"
        self._warm_up = warm_up
        self._marks: list[Any] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 < self._warm_up:
            return
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        if not self._marks:
            torch.cuda.reset_peak_memory_stats()
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        self._marks.append(mark)

    @property
    def milliseconds(self) -> list[float]:
        """From the end of each step to the end of the next."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if not self._cuda:
            return [(end - start) * 1e3 for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


class Profile(Callback):
    """Run the profiler over the last steps of a fit."""

    def __init__(self, device: torch.device, first: int, last: int) -> None:
        self._cuda = device.type == "cuda"
        self._first, self._last = first, last
        cuda = [ProfilerActivity.CUDA] if self._cuda else []
        activities = [ProfilerActivity.CPU, *cuda]
        self._profiler = profile(activities=activities, acc_events=True)  # else torch 2.11 warns

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self._first:
            self._profiler.start()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self._last:
            if self._cuda:
                torch.cuda.synchronize()
            self._profiler.stop()

    @property
    def share(self) -> float:
        """Share of the device's time in what our layers replace, or in what replaces it."""
        return share_of_replaced_ops(self._profiler.key_averages(), on_cuda=self._cuda)


def share_of_replaced_ops(events: Iterable[Any], *, on_cuda: bool) -> float:
    """Return the share of the time in replaced operators and in kernels that do their work.

    Args:
        events: Averages by name, as the profiler returns them.
        on_cuda: Whether to count the time of the GPU's kernels, or else of the CPU's operators.
    """
    total = replaced = 0.0
    for event in events:
        if on_cuda and event.device_type.name == "CUDA":
            if event.is_user_annotation:
                continue  # a range around kernels that are counted themselves
            total += event.self_device_time_total
            replaced += event.self_device_time_total * _does_their_work(event.key)
        elif on_cuda:
            replaced += event.device_time_total * (event.key in REPLACED)
        else:
            total += event.self_cpu_time_total
            replaced += event.cpu_time_total * (event.key in REPLACED)
    return replaced / total


def _does_their_work(kernel: str) -> bool:
    """Return whether a GPU's kernel is one of ours, or one that the compiler fused of such ops."""
    fused = kernel.startswith("triton_")
    return kernel in _our_kernels() or (
        fused and any(name.removeprefix("aten::") in kernel for name in REPLACED)
    )


@functools.cache
def _our_kernels() -> frozenset[str]:
    path = lightning_kernels.__path__
    modules = (import_module(m.name) for m in pkgutil.walk_packages(path, "lightning_kernels."))
    names = (name for module in modules for name in vars(module))
    return frozenset(name for name in names if name.endswith("_kernel"))


class MissingCompilerError(RuntimeError):
    """There is no compiler for ``torch.compile`` to use."""


class Run:
    """One variant of one model, fitted again and again.

    Attributes:
        milliseconds: Of every step that was timed.
        peak_mib: The most memory that a fit took, ``None`` on a CPU.
        share: What :func:`share_of_replaced_ops` found; ``None`` where names don't tell.
        status: ``"ok"``, or ``"missing"`` without a compiler, or ``"failed"``.
        reason: Why it is not ok.
    """

    def __init__(
        self, workload: Workload, variant: Variant, device: torch.device, batches: Sequence[Batch]
    ) -> None:
        self._workload, self._variant = workload, variant
        self._device, self._batches = device, batches
        self._module: Training | None = None
        self._fitted: nn.Module | None = None
        self.milliseconds: list[float] = []
        self.peak_mib: float | None = None
        self.share: float | None = None
        self.status = "ok"
        self.reason: str | None = None

    @property
    def fused_layers(self) -> int:
        """How many layers are fused."""
        module = self._module
        return len(module.fused_layers.replaced) if isinstance(module, FusedLayersMixin) else 0

    def prepare(self, plan: Plan) -> None:
        """Build the model, and compile, warm up and profile it in a first fit."""
        self._guarded(functools.partial(self._prepare, plan))

    def measure(self, plan: Plan) -> float:
        """Fit, and return the median milliseconds per step; not a number once it has failed."""
        return (
            math.nan
            if self.status != "ok"
            else self._guarded(functools.partial(self._measure, plan))
        )

    def release(self) -> None:
        """Forget the model."""
        self._module = self._fitted = None
        _free_memory()

    def _prepare(self, plan: Plan) -> float:
        if self._variant.compiled and self._device.type == "cpu" and not _cxx():
            raise MissingCompilerError("torch.compile finds no C++ compiler")
        self._module = self._variant.module(self._workload.make_network())
        compiled = self._variant.compiled
        self._fitted = torch.compile(self._module) if compiled else self._module  # type: ignore[assignment]
        last = plan.warm_up + _PROFILED
        callback = Profile(self._device, plan.warm_up, last - 1)
        self._fit(callback, last)
        if not (compiled and self._device.type == "cpu"):  # whose fused loops have no names
            self.share = callback.share
        return math.nan

    def _measure(self, plan: Plan) -> float:
        steps = Steps(self._device, plan.warm_up)
        self._fit(steps, plan.warm_up + plan.steps)
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            self.peak_mib = max(peak, self.peak_mib or 0.0)
        milliseconds = steps.milliseconds
        self.milliseconds += milliseconds
        return statistics.median(milliseconds)

    def _fit(self, callback: Callback, steps: int) -> None:
        assert self._fitted is not None
        callbacks = [callback, *self._variant.callbacks()]
        precision = self._workload.precision
        lightning_kernels.set_compiled_norms(self._variant.compiled_norms)
        try:
            train(
                self._fitted, self._batches, self._device, callbacks,
                steps=steps, precision=precision,
            )  # fmt: skip
        finally:
            lightning_kernels.set_compiled_norms("kernels")

    def _guarded(self, work: Callable[[], float]) -> float:
        try:
            return work()
        except Exception as error:
            self.status = "missing" if isinstance(error, MissingCompilerError) else "failed"
            self.reason = f"{type(error).__name__}: {error}"[:500]
        self.release()  # out here, where the traceback no longer holds the tensors
        return math.nan


def measure_model(
    workload: Workload, variants: Sequence[str], plan: Plan, device: torch.device,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:  # fmt: skip
    """Return a row for each variant; they take turns, so that drift hits all of them alike.

    Between its turns a model waits in the CPU's memory, where Lightning leaves it.
    """
    batches = workload.make_batches(device)
    runs = {name: Run(workload, VARIANTS[name], device, batches) for name in variants}
    for run in runs.values():
        run.prepare(plan)
        advance()
    timers = [functools.partial(run.measure, plan) for run in runs.values()]
    rounds = []
    for _ in range(plan.rounds):
        rounds.append(dict(zip(runs, interleave(timers), strict=True)))
        advance()
    rows = [_row(workload, name, run, rounds) for name, run in runs.items()]
    for run in runs.values():
        run.release()
    torch.compiler.reset()
    return rows


def _row(workload: Workload, name: str, run: Run, rounds: list[dict[str, float]]) -> Row:
    row: Row = {"model": workload.name, "variant": name}
    if run.status != "ok":
        return {**row, "status": run.status, "reason": run.reason}
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
    """Return the C++ compiler that torch would use."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", default))


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fit``."""
    parser.add_argument(
        "--models", nargs="*", choices=list(ON_GPU), default=list(ON_GPU), metavar="MODEL",
        help=f"any of {', '.join(ON_GPU)}, or none (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS),
        help="(default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--practices", nargs="*", choices=list(overhead.PRACTICES), metavar="PRACTICE",
        default=list(overhead.PRACTICES),
        help=f"whose cost per step to measure: any of {', '.join(overhead.PRACTICES)}, or none"
        " (default: all)",
    )  # fmt: skip
    parser.add_argument("--short", action="store_true", help="a few steps only")
    add_out(parser, "fit.json")
    parser.add_argument("--resume", action="store_true", help="keep what fit.json has, go on")


def main(arguments: argparse.Namespace) -> int:
    """Measure models, then practices; a failure is a row, and the status 0."""
    from benchmarks import report

    results = Results.create(arguments.out / "fit.json", arguments.resume)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        measure_models(results, arguments, progress)
        measure_practices(results, arguments, progress)
    _print(results.rows, console)
    report.write(results, arguments.out)
    return 0


def measure_models(results: Results, arguments: argparse.Namespace, progress: Progress) -> None:
    """Add the rows of the models, all variants of one at a time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workloads = ON_GPU if device.type == "cuda" else ON_CPU
    plan = SHORT if arguments.short else FULL
    for model in arguments.models:
        workload = workloads[model]
        key = {"model": workload.name, "short": arguments.short}
        todo = [name for name in arguments.variants if not results.find(**key, variant=name)]
        if not todo:
            continue
        task = progress.add_task(workload.name, total=len(todo) + plan.rounds)
        advance = functools.partial(progress.advance, task)
        for row in measure_model(workload, todo, plan, device, advance):
            results.add({**row, "short": arguments.short, "device": device.type})


def measure_practices(results: Results, arguments: argparse.Namespace, progress: Progress) -> None:
    """Add the rows of the practices."""
    plan = overhead.SHORT if arguments.short else overhead.FULL
    task = progress.add_task("cost per step", total=len(arguments.practices))
    for practice in arguments.practices:
        progress.update(task, description=f"cost of {practice}")
        key = {"practice": practice, "short": arguments.short}
        if not results.find(**key):
            results.add({**key, **overhead.measure(practice, plan)})
        progress.advance(task)


def _print(rows: Sequence[Row], console: Console) -> None:
    """Say in a line each what came out."""
    for row in rows:
        what = row.get("practice") or f"{row['model']}, {row['variant']}"
        if row["status"] != "ok":
            console.print(f"{what}: {row['reason']}", markup=False, soft_wrap=True)
        elif "practice" in row:
            console.print(
                "{practice}: {microseconds_per_step} ± {spread} us a step, {percent_of_20ms_step} %"
                " of one of 20 ms (goal: under 1 %)".format(**row),
                soft_wrap=True,
            )
        else:
            figures = "{milliseconds_per_step} ± {spread} ms a step, {fused_layers} layers fused"
            console.print(f"{what}: {figures.format(**row)}", soft_wrap=True)
