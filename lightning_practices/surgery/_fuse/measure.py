"""Keep a fused layer only where it was measured to be faster than torch's, and agrees with it."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from lightning_kernels import keep_kernels, run_all_kernels
from lightning_practices._arguments import check_instance
from lightning_practices._names import check_module
from lightning_practices._ranks import gathered, rank, ranks
from lightning_practices.nn.blocks import FUSED_FROM, LEFT, FusedBlock, folds_of
from lightning_practices.surgery._blocks import run
from lightning_practices.surgery._fuse.classes import plain_class, restore, set_class
from lightning_practices.surgery._fuse.race import (
    STEPS,
    call_and_differentiate,
    forget_ones,
    race,
    time_use,
)
from lightning_practices.surgery._fuse.refusals import public_name
from lightning_practices.surgery._fuse.report import Measured, Report, Skipped
from lightning_practices.surgery._fuse.routes import cache_file, load, store
from lightning_practices.surgery._fuse.tensors import device_of
from lightning_practices.surgery._fuse.uses import Observed, Target, Use, observe, targets_of
from lightning_practices.timing import Clock, Times


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
        >>> from lightning_practices.surgery import fuse, measure_fused
        >>> model, x = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), torch.randn(4, 8)
        >>> with measure_fused(model, fuse(model)) as report:
        ...     model(x).sum().backward()
        >>> [measured.call for measured in report.measured]
        ['LayerNorm']
    """
    check_module(model)
    if report is None:
        report = Report(when_empty="Nothing is fused: call surgery.fuse(model) first.")
    check_instance("report", report, Report, "a report of surgery.fuse")
    return measuring(model, report, DEFAULT)


@contextlib.contextmanager
def measuring(
    model: nn.Module, report: Report, means: Means, *, layers: bool = True
) -> Iterator[Report]:
    """Do what :func:`measure_fused` describes. Without ``layers``, compare but don't time them."""
    targets = [
        target
        for target in targets_of(model)
        if ranks() == 1 or not isinstance(target.module, nn.SyncBatchNorm)
    ]
    with observe(targets) as observed:
        yield report
    device = device_of(model)
    with _same_random_numbers(device):
        _decide(model, targets, observed, device, report, means, layers)


def measure(model: nn.Module, batch: Any, report: Report, means: Means = DEFAULT) -> None:
    """Run ``model`` on ``batch``, and restore each fused layer that is not faster than torch's.

    Parameters, gradients, buffers and torch's random generators are as before.

    Args:
        model: A fused model.
        batch: What it is called with.
        report: Report of :func:`fuse`, which is changed accordingly.
        means: What measurements need.

    Raises:
        ValueError: If the model does not run on the batch.
        RuntimeError: If it does not in another process.
    """
    device, compiled = device_of(model), _is_compiled(model)

    def step() -> object:
        result = call_and_differentiate(lambda *_: run(model, _copied(batch)), model, ((), {}))
        if isinstance(result, tuple) and all(gradient is None for gradient in result):
            raise RuntimeError("no gradient reaches the parameters, as with reentrant checkpoints")
        return result

    with (
        _same_buffers(model),
        _same_random_numbers(device),
        torch.set_grad_enabled(model.training),
    ):
        with (
            measuring(model, report, means, layers=not compiled),
            torch.compiler.set_stance("force_eager"),
        ):
            _run_everywhere(model, batch)
        fused = targets_of(model)
        # In several processes a step may have collectives, which all ranks must run alike.
        if not fused or ranks() > 1 or torch.are_deterministic_algorithms_enabled():
            return
        try:
            report.step = _time_step(model, step, device, means)
        except Exception as error:  # of the user's model, such as a checkpoint that refuses
            warnings.warn(
                f"the layers are measured, but not the whole step: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=4,
            )
            return
        if report.step.ratio >= 1 or (compiled and not report.step.faster):
            reason = f"the whole step gains nothing: {report.step}"
            _restore(dict.fromkeys(fused, reason), model, report)


def _run_everywhere(model: nn.Module, batch: Any) -> None:
    """Run the model once. If it fails in one process, all of them raise."""
    error: Exception | None = None
    try:
        run(model, _copied(batch))
    except Exception as raised:
        error = raised
    texts = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        hint = ""
        if isinstance(batch, list):
            hint = " (a list is one argument: give its first item, or a tuple of all arguments)"
        raise ValueError(
            f"{type(model).__name__} doesn't run on the batch: {error}{hint}"
        ) from error
    for place, text in enumerate(texts):
        if text is not None:
            raise RuntimeError(f"the model doesn't run on the batch of rank {place}: {text}")


def _copied(batch: Any) -> Any:
    """Return a batch with copies of its tensors, which the model may change."""
    if isinstance(batch, Mapping):
        batch = dict(batch)
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, batch)


def _decide(
    model: nn.Module, targets: list[Target], observed: Observed, device: torch.device,
    report: Report, means: Means, layers: bool,
) -> None:  # fmt: skip
    """Time what was observed, and restore the layers that are not faster or don't agree.

    In several processes, rank 0 measures, and a layer that one rank refuses is restored in all.
    With ``torch.use_deterministic_algorithms`` only kept times are used: new ones could choose
    another way than in the run before.
    """
    times: dict[tuple[str, ...], Times] = {}
    if layers and rank() == 0:
        times = _times_of(observed, device, means)
    refused = {target.names: reason for target, reason in observed.refused.items()}
    everywhere, (times, *_) = gathered(refused), gathered(times)
    refused = {names: reason for each in everywhere for names, reason in each.items()}
    left: dict[Target, str] = {}
    for target in targets:
        measured = times.get(target.names)
        if target.names in refused:
            left[target] = refused[target.names]
        elif measured is not None:
            report.measured.append(Measured(target.names, target.text, measured))
            if not measured.faster:
                left[target] = f"no gain of 3 % beyond the noise: {measured}"
    for target in targets:  # a block that was timed with its layers keeps them
        if target not in left and target.names in times:
            inside = set(target.module.modules()) - {target.module}
            left = {one: why for one, why in left.items() if one.module not in inside}
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
    console = Console(stderr=True)
    if means.shown and console.is_terminal:
        missing = track(missing, "measuring layers", transient=True, console=console)
    new: dict[str, Times] = {}
    try:
        for key in missing:
            with run_all_kernels():
                try:
                    new[key] = time_use(uses[key], means.clock)
                except Exception as error:  # of the user's layer, or out of memory
                    reason = f"not measured: {type(error).__name__}: {error}"
                    observed.refused |= dict.fromkeys(uses[key].counts, reason)
    finally:
        forget_ones()
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
    return Times(theirs, ours, math.hypot(*(each.noise * each.torch for each in times)) / theirs)


def _keep_small(use: Use) -> None:
    _, fused = use.target.ways()
    args, kwargs = use.arguments()
    with use.context(), torch.no_grad(), run_all_kernels() as calls:
        fused(*args, **kwargs)
    keep_kernels(calls)


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
        calls = {"torch": [step], "ours": [step]}
        return race(calls, device, means.clock, STEPS, prepare)
    finally:
        prepare("ours")
        forget_ones()


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )


@contextlib.contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers at the end, also those that the model has replaced."""
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in before:
                module._buffers[name] = buffer
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def _same_random_numbers(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context that restores the random generators at its end."""
    return torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else [])
