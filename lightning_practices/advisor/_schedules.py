"""What torch's learning rate schedulers plan: their warmup, their horizon, where they end."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from lightning_practices.advisor._fit import Fit
from lightning_practices.advisor._observation import Observation

_PROBES = 400  # of the function of a LambdaLR
_LONGEST = 100_000  # steps that are probed
_MANY = 8  # batches of an epoch, so that a multiple of them is hardly one by chance
_APART = 3  # least steps of an epoch, to tell steps and epochs apart
_EPOCHS = 5  # of a shorter fit a curve of so many steps may be meant
_NEAR = 1.25
_NOTHING = 1e-3  # of the highest factor


def horizon_of(scheduler: Any) -> int | None:
    """Return after how many of its steps a scheduler has reached its last rate, or ``None``."""
    if isinstance(scheduler, OneCycleLR):
        return int(scheduler.total_steps)
    if isinstance(scheduler, CosineAnnealingLR):
        return int(scheduler.T_max)
    if isinstance(scheduler, PolynomialLR):
        return int(scheduler.total_iters)
    if isinstance(scheduler, LinearLR):
        return int(scheduler.total_iters) if scheduler.end_factor < scheduler.start_factor else None
    if isinstance(scheduler, SequentialLR):
        last = horizon_of(scheduler._schedulers[-1])
        return None if last is None else scheduler._milestones[-1] + last
    if isinstance(scheduler, ChainedScheduler):
        return max(filter(None, map(horizon_of, scheduler._schedulers)), default=None)
    if isinstance(scheduler, LambdaLR):
        return _horizon_of_function(scheduler.lr_lambdas[0])
    return None


def warmup_of(scheduler: Any) -> int | None:
    """Return after how many of its steps a scheduler has reached its highest rate, if it rises."""
    if isinstance(scheduler, OneCycleLR):
        return round(scheduler._schedule_phases[0]["end_step"])
    if isinstance(scheduler, LinearLR):
        return int(scheduler.total_iters) if scheduler.start_factor < scheduler.end_factor else None
    if isinstance(scheduler, ConstantLR):
        return int(scheduler.total_iters) if scheduler.factor < 1 else None
    if isinstance(scheduler, SequentialLR):
        first = warmup_of(scheduler._schedulers[0])
        return None if first is None else int(scheduler._milestones[0])
    if isinstance(scheduler, ChainedScheduler):
        return max(filter(None, map(warmup_of, scheduler._schedulers)), default=None)
    if isinstance(scheduler, LambdaLR):
        return _warmup_of_function(scheduler.lr_lambdas[0])
    return None


def factor_at(scheduler: Any, step: int) -> float | None:
    """Return the rate after so many steps as a share of the highest rate until then, or ``None``.

    It is known for schedulers that divide the rate and don't raise it again.
    """
    if isinstance(scheduler, ExponentialLR):
        return float(scheduler.gamma**step)
    if isinstance(scheduler, StepLR):
        return float(scheduler.gamma ** (step // scheduler.step_size))
    if isinstance(scheduler, MultiStepLR):
        drops = sum(n for place, n in scheduler.milestones.items() if place <= step)
        return float(scheduler.gamma**drops)
    if isinstance(scheduler, PolynomialLR):
        return float(max(1 - step / scheduler.total_iters, 0.0) ** scheduler.power)
    if isinstance(scheduler, LinearLR) and scheduler.end_factor < scheduler.start_factor:
        share = min(step / scheduler.total_iters, 1.0)
        return 1 - share * (1 - scheduler.end_factor / scheduler.start_factor)
    if isinstance(scheduler, SequentialLR):
        place = bisect_right(scheduler._milestones, step)
        start = scheduler._milestones[place - 1] if place else 0
        return factor_at(scheduler._schedulers[place], step - start)
    if isinstance(scheduler, LambdaLR):
        curve = _curve(scheduler.lr_lambdas[0], step)
        ends = [y for x, y in curve if x >= step]
        highest = max((y for _, y in curve), default=0.0)
        return max(ends) / highest if ends and highest > 0 else None
    return None


def highest_factor(scheduler: Any) -> float | None:
    """Return the highest rate of a schedule as a share of the optimizer's; ``None`` if unknown."""
    if isinstance(scheduler, LambdaLR):
        curves = [_curve(each, _LONGEST) for each in {*scheduler.lr_lambdas}]
        return max((y for curve in curves for _, y in curve), default=None)
    return 1.0 if type(scheduler).__module__ == LambdaLR.__module__ else None


def peak_rate(seen: Observation, optimizer: Any, group: dict[str, Any]) -> float:
    """Return the highest rate that a group of an optimizer is known to get."""
    rate = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
    for config in seen.schedulers:
        if getattr(config.scheduler, "optimizer", None) is optimizer:
            factor = highest_factor(config.scheduler)
            rate = float(group["lr"]) if factor is None else rate * factor
    return rate


def _curve(function: Callable[[int], float], to: int) -> list[tuple[int, float]]:
    """Return values of a function at steps from 0 to ``to``; none if it can't be asked."""
    steps = {*range(20), *(round(to * i / _PROBES) for i in range(_PROBES + 1))}
    steps |= {round(math.exp(math.log(to + 1) * i / _PROBES)) for i in range(_PROBES + 1)}
    try:
        return [(x, float(function(x))) for x in sorted(steps) if x <= to]
    except Exception:
        return []


def _horizon_of_function(function: Any) -> int | None:
    if (named := _named(function, "num_training_steps")) is not None:
        return named
    curve = _curve(function, _LONGEST)
    highest = max((y for _, y in curve), default=0.0)
    peak = next((x for x, y in curve if y >= highest > 0), 0)
    low = next((x for x, y in curve if x > peak and y <= _NOTHING * highest), None)
    if low is None:
        return None
    before = max(x for x, _ in curve if x < low)
    while low - before > 1:  # the curve falls between these probes
        middle = (low + before) // 2
        is_low = float(function(middle)) <= _NOTHING * highest
        before, low = (before, middle) if is_low else (middle, low)
    return low


def _warmup_of_function(function: Any) -> int | None:
    if (named := _named(function, "num_warmup_steps")) is not None:
        return named or None
    curve = _curve(function, _LONGEST)
    highest = max((y for _, y in curve), default=0.0)
    peak = next((x for x, y in curve if y >= (1 - _NOTHING) * highest > 0), 0)
    rise = [y for x, y in curve if x <= peak]
    return peak if peak and _rises(rise) and rise[0] < 0.5 * highest else None


def _rises(values: Sequence[float]) -> bool:
    return all(b >= a for a, b in pairwise(values))


def _named(function: Any, name: str) -> int | None:
    """Return an argument of a ``functools.partial``, as transformers makes its schedules."""
    found = getattr(function, "keywords", {}).get(name)
    return int(found) if isinstance(found, int | float) else None


def name_of(config: Any) -> str:
    """Return the name of a configuration's scheduler, with its parts."""
    scheduler = config.scheduler
    parts = [type(one).__name__ for one in getattr(scheduler, "_schedulers", ())]
    return type(scheduler).__name__ + (f" of {' and '.join(parts)}" if parts else "")


def steps_of(config: Any, fit: Fit) -> int | None:
    """Return how often Lightning steps a scheduler within the fit; ``None`` if unknown."""
    length = fit.steps if config.interval == "step" else fit.epochs
    return None if length is None else length // max(config.frequency, 1)


def counts_wrong_unit(seen: Observation, config: Any, fit: Fit) -> bool:
    """Return whether a schedule is stepped by epochs and its horizon is in steps, or vice versa.

    The horizon has to be that of the fit in the other unit, within a quarter. Without a Trainer it
    has to be what the module has asked of the one that ran the steps.
    """
    scheduler, is_by_step = config.scheduler, config.interval == "step"
    horizon = horizon_of(scheduler)
    if not horizon or not seen.module.automatic_optimization:
        return False
    if not fit.is_known:
        asked = seen.observer.max_epochs if is_by_step else _estimated_steps(seen)
        return horizon == asked or (
            isinstance(scheduler, OneCycleLR)
            and not is_by_step
            and (fit.batches or 0) >= _MANY
            and horizon % (fit.batches or 1) == 0
            and horizon > (fit.batches or 1)
        )
    if not fit.steps or not fit.epochs or fit.steps < _APART * fit.epochs:
        return False
    other = fit.epochs if is_by_step else fit.steps
    if fit.epochs < _EPOCHS and is_by_step:
        return horizon == other and isinstance(scheduler, OneCycleLR)
    return 1 / _NEAR <= horizon / other <= _NEAR


def _estimated_steps(seen: Observation) -> float | None:
    try:
        return seen.observer.estimated_stepping_batches
    except Exception:
        return None
