"""Keep a fused layer only where it was measured to be faster than torch's, and agrees with it."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import nn

from lightning_kernels._core.crossover import keep, noting
from lightning_practices._arguments import check_instance
from lightning_practices._names import check_module
from lightning_practices._timing import Clock, Times
from lightning_practices.nn.blocks import FUSED_FROM, LEFT, FusedBlock, folds_of
from lightning_practices.surgery._blocks import run
from lightning_practices.surgery._fuse.classes import plain_class, restore, set_class
from lightning_practices.surgery._fuse.race import call_and_differentiate, race, time_use
from lightning_practices.surgery._fuse.refusals import public_name
from lightning_practices.surgery._fuse.report import Measured, Report, Skipped
from lightning_practices.surgery._fuse.routes import cache_file, load, store
from lightning_practices.surgery._fuse.uses import Observed, Target, observe, targets_of


@dataclass(frozen=True)
class Means:
    """What measurements need of a process.

    Attributes:
        clock: Function that returns seconds.
        cache: Function of a device that returns the file with measured times, or ``None``.
        shown: Whether to show a progress bar.
    """

    clock: Clock = time.perf_counter
    cache: Callable[[torch.device], Path | None] = cache_file
    shown: bool = True


DEFAULT = Means()


def measure_fused(
    model: nn.Module, report: Report | None = None
) -> contextlib.AbstractContextManager[Report]:
    """Observe a training step, and afterwards restore the fused layers that are not faster.

    It is for a training loop of your own; :func:`fuse` with a batch does this by itself. Within the
    context run one step of the fused model, forward at least. When the context ends, the calls of
    each layer are timed both ways, and a layer stays fused only if it is at least 3 % faster,
    beyond the noise, and its results and gradients agreed with torch's on the tensors of the step.
    In several processes all must do so. ``SyncBatchNorm`` is not measured there.

    Within the context blocks call their layers one by one, and each layer's first call is computed
    a few times more. That doesn't change the step's results.

    Args:
        model: A fused model.
        report: Report of :func:`fuse`, which is changed accordingly; ``None`` for a new one.

    Returns:
        A context with the report, which has the times when the context has ended.

    Raises:
        TypeError: If ``model`` is not a module, or ``report`` is no report.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), torch.randn(4, 8)
        >>> with measure_fused(model, fuse(model)) as report:
        ...     model(x).sum().backward()
    """
    check_module(model)
    if report is not None:
        check_instance("report", report, Report, "a report of surgery.fuse")
    return measuring(model, Report() if report is None else report, DEFAULT)


@contextlib.contextmanager
def measuring(
    model: nn.Module, report: Report, means: Means, *, layers: bool = True
) -> Iterator[Report]:
    """Do what :func:`measure_fused` describes. Without ``layers``, compare but don't time them."""
    targets = [
        target
        for target in targets_of(model)
        if _processes() == 1 or not isinstance(target.module, nn.SyncBatchNorm)
    ]
    with observe(targets) as observed:
        yield report
    device = _device_of(model)
    with _same_random_numbers(device):
        _decide(model, targets, observed, device, report, means, layers)


def measure(model: nn.Module, batch: Any, report: Report, means: Means = DEFAULT) -> None:
    """Run ``model`` on ``batch``, and restore each fused layer that is not faster than torch's.

    Parameters, gradients, buffers and random generators are as before.

    Args:
        model: A fused model.
        batch: What it is called with.
        report: Report of :func:`fuse`, which is changed accordingly.
        means: What measurements need.

    Raises:
        ValueError: If the model does not run on the batch.
    """
    device, compiled = _device_of(model), _is_compiled(model)

    def step() -> object:
        return call_and_differentiate(lambda *_: run(model, batch), model, ((), {}))

    with (
        _same_buffers(model),
        _same_random_numbers(device),
        torch.set_grad_enabled(model.training),
    ):
        with (
            measuring(model, report, means, layers=not compiled),
            torch.compiler.set_stance("force_eager"),
        ):
            try:
                run(model, batch)
            except Exception as error:
                raise ValueError(
                    f"{type(model).__name__} doesn't run on the batch: {error}"
                ) from error
        fused = targets_of(model)
        # In several processes a step may have collectives, which all ranks must run alike.
        if not fused or _processes() > 1 or torch.are_deterministic_algorithms_enabled():
            return
        report.step = _time_step(model, step, device, means)
        slower = report.step.ratio - report.step.noise > 1
        if slower or (compiled and not report.step.faster):
            reason = f"the whole step gains nothing: {report.step}"
            _restore(dict.fromkeys(fused, reason), model, report)


def _decide(
    model: nn.Module, targets: list[Target], observed: Observed, device: torch.device,
    report: Report, means: Means, layers: bool,
) -> None:  # fmt: skip
    """Time what was observed, and restore the layers that are not faster or don't agree.

    In several processes, rank 0 measures, and a layer that one rank refuses is restored in all.
    With ``torch.use_deterministic_algorithms`` only kept times are used: new ones could choose
    another way than in the run before.
    """
    refused = {target.names: reason for target, reason in observed.refused.items()}
    times: dict[tuple[str, ...], Times] = {}
    if layers and _rank() == 0:
        times = _times_of(observed, device, means)
    refused, times = _agreed(refused, times)
    left: dict[Target, str] = {}
    for target in targets:
        measured = times.get(target.names)
        if target.names in refused:
            left[target] = refused[target.names]
        elif measured is not None:
            report.measured.append(Measured(target.names, target.text, measured))
            if not measured.faster:
                left[target] = f"no measured gain: {measured}"
    _restore(left, model, report)
    for use in observed.uses.values():  # small inputs, for which the table would name torch
        if any(target not in left and target.names in times for target in use.counts):
            _keep_small(use)


def _times_of(
    observed: Observed, device: torch.device, means: Means
) -> dict[tuple[str, ...], Times]:
    """Return the times of each target's calls in a step, added up."""
    path = means.cache(device)
    known = load(path)
    uses = {
        key: use
        for key, use in observed.uses.items()
        if any(target not in observed.refused for target in use.counts)
    }
    missing: Iterable[str] = [key for key in uses if key not in known]
    if torch.are_deterministic_algorithms_enabled():
        missing = []
    if means.shown:
        missing = track(missing, "measuring layers", transient=True, console=Console(stderr=True))
    new: dict[str, Times] = {}
    for key in missing:
        with contextlib.suppress(torch.OutOfMemoryError), noting():  # then it is not measured
            new[key] = time_use(uses[key], means.clock)
    store(path, new)
    known |= new
    by_target: dict[Target, list[Times]] = {}
    for key, use in uses.items():
        for target, count in use.counts.items():
            by_target.setdefault(target, []).extend([known[key]] * count if key in known else [])
    return {target.names: _sum(each) for target, each in by_target.items() if each}


def _sum(times: list[Times]) -> Times:
    if len(times) == 1:
        return times[0]
    ours, theirs = sum(each.ours for each in times), sum(each.torch for each in times)
    noise = math.hypot(*(each.noise * each.torch for each in times)) / theirs
    return Times(theirs, ours, sum(each.ratio * each.torch for each in times) / theirs, noise)


def _keep_small(use: Any) -> None:
    _, fused = use.target.ways()
    args, kwargs = use.arguments()
    with use.context(), torch.no_grad(), noting() as calls:
        fused(*args, **kwargs)
    keep(calls)


def _restore(left: dict[Target, str], model: nn.Module, report: Report) -> None:
    """Restore these layers, and blocks that fold nothing any more, and report the reasons."""
    gone = {target.names for target in left}
    report.replaced[:] = [layer for layer in report.replaced if layer.names not in gone]
    report.folded[:] = [fold for fold in report.folded if fold.names not in gone]
    for target, reason in left.items():
        original = vars(target.module)[FUSED_FROM]
        restore(target.module)
        vars(target.module)[LEFT] = reason
        report.skipped.append(Skipped(target.names, public_name(original), reason))
    for module in model.modules():
        if FUSED_FROM in vars(module) and isinstance(module, FusedBlock):
            folded, _ = folds_of(type(module), module, {})
            if folded == {}:
                restore(module)


def _time_step(
    model: nn.Module, step: Callable[[], object], device: torch.device, means: Means
) -> Times:
    """Time a step of the model, with the fused layers and with torch's."""
    classes = {
        module: {"ours": type(module), "torch": plain_class(module)}
        for module in model.modules()
        if FUSED_FROM in vars(module)
    }

    def prepare(name: str) -> None:
        for module, ways in classes.items():
            set_class(module, ways[name])

    try:
        return race({"torch": [step], "ours": [step]}, device, means.clock, prepare)
    finally:
        prepare("ours")


def _agreed(
    refused: dict[tuple[str, ...], str], times: dict[tuple[str, ...], Times]
) -> tuple[dict[tuple[str, ...], str], dict[tuple[str, ...], Times]]:
    """Return the layers that any rank refuses, and the times that rank 0 measured."""
    if _processes() == 1:
        return refused, times
    everywhere: list[Any] = [None] * _processes()
    dist.all_gather_object(everywhere, refused)
    measured = [times]
    dist.broadcast_object_list(measured, src=0)
    return {names: why for each in everywhere for names, why in each.items()}, measured[0]


def _rank() -> int:
    return dist.get_rank() if _processes() > 1 else 0


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers at the end."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _same_random_numbers(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context that restores the random generators at its end."""
    return torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else [])
