"""Early stopping that is less patient than the learning rate's schedule."""

from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, ReduceLROnPlateau

from lightning_practices.advisor._fit import Fit, fit_of
from lightning_practices.advisor._monitors import Monitor, early_stops_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._schedules import name_of

_COARSE = 1e-3  # threshold of a plateau's schedule, from which it overlooks what stopping counts
_SOURCE = "reports of fits that stop before ReduceLROnPlateau has lowered the rate"


@rule(
    "LP671", "warning",
    practice="The learning rate falls on a plateau before early stopping ends the fit",
    measures="epochs without improvement of the same value until early stopping, and until the"
    " schedule's rate falls",
    healthy="a patience of early stopping of at least twice the schedule's",
    source=_SOURCE,
    explained_by=("LP611", "LP612", "LP613"),
)  # fmt: skip
def stopped_before_plateau(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    if not seen.module.automatic_optimization:
        return
    for monitor in early_stops_of(seen):
        for config in seen.schedulers:
            scheduler = config.scheduler
            if not isinstance(scheduler, ReduceLROnPlateau) or not _is_same(monitor, config):
                continue
            end, unit = _end_of(seen, monitor, fit), _unit_of(config, fit)
            if end is None or unit is None or end >= (fit.epochs or end + 1):
                continue
            fall = (scheduler.patience + 1) * unit
            if end <= fall:
                yield Evidence(
                    f"{monitor.title} ends the fit after {end:g} epochs in which"
                    f" {monitor.name!r} doesn't improve, and ReduceLROnPlateau lowers the rate"
                    f" after {fall:g} such epochs: the rate never falls",
                    f"EarlyStopping(patience={_patience_for(2 * fall, end, monitor)}), or a"
                    " shorter patience of ReduceLROnPlateau",
                    numbers={"end": end, "fall": fall},
                )


@rule(
    "LP672", "hint",
    practice="Early stopping waits for a cycle of the learning rate",
    measures="epochs without improvement until early stopping, and the epochs of the second cycle"
    " of a schedule that restarts or is cyclic",
    healthy="a patience of at least one cycle",
    source="Loshchilov and Hutter, 2017, arXiv:1608.03983: results are best at a cycle's end",
    explained_by=("LP611", "LP612", "LP613"),
)  # fmt: skip
def stopped_within_a_cycle(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for monitor in early_stops_of(seen):
        end = _end_of(seen, monitor, fit)
        for config in seen.schedulers:
            steps, unit = _cycle_of(config.scheduler), _unit_of(config, fit)
            if steps is None or unit is None or end is None:
                continue
            cycle = steps * unit
            # A cycle within an epoch or two has no epochs in which the result gets worse.
            if 2 < cycle > end and end < (fit.epochs or end + 1):
                yield Evidence(
                    f"{monitor.title} ends the fit after {end:g} epochs without improvement, and a"
                    f" cycle of {name_of(config)} takes {cycle:g}: results get worse as the rate"
                    " rises again, and the fit ends before the cycle does",
                    f"EarlyStopping(patience={_patience_for(cycle, end, monitor)}), a cycle"
                    " and more",
                    numbers={"end": end, "cycle": cycle},
                )


def _is_same(monitor: Monitor, config: Any) -> bool:
    """Whether a plateau's schedule and early stopping find the same improvements."""
    scheduler = config.scheduler
    is_fine = scheduler.threshold <= _COARSE or abs(getattr(monitor.owner, "min_delta", 0)) > 0
    return is_fine and (config.monitor, scheduler.mode) == (monitor.name, monitor.mode)


def _end_of(seen: Observation, monitor: Monitor, fit: Fit) -> float | None:
    """Return after how many epochs without improvement early stopping ends a fit."""
    trainer, patience = seen.trainer, float(monitor.owner.patience)
    at_epochs = getattr(monitor.owner, "_check_on_train_epoch_end", None)
    if trainer is None or at_epochs:
        return patience
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    if every is None or not isinstance(interval, int | float):
        return None
    if isinstance(interval, float):
        return float(patience * every * interval)
    return float(patience * every * min(interval / fit.batches, 1)) if fit.batches else None


def _unit_of(config: Any, fit: Fit) -> float | None:
    """Return the epochs between two steps of a schedule; ``None`` if unknown."""
    if config.interval == "epoch":
        return float(config.frequency)
    if fit.batches is None or not fit.batches:
        return None
    if isinstance(config.scheduler, ReduceLROnPlateau):
        return float(config.frequency / fit.batches)
    by_epoch = fit.steps / fit.epochs if fit.steps and fit.epochs else fit.batches
    return float(config.frequency / by_epoch)


def _patience_for(epochs: float, end: float, monitor: Monitor) -> int:
    """Return the patience, in checks, of at least so many epochs."""
    return max(-int(-epochs * monitor.owner.patience // max(end, 1e-9)), 1)


def _cycle_of(scheduler: Any) -> int | None:
    """Return the steps of the second cycle of a schedule, which is the first after a rise."""
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        return int(scheduler.T_0 * scheduler.T_mult)
    return int(scheduler.total_size) if isinstance(scheduler, CyclicLR) else None
