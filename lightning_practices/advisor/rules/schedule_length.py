"""A schedule whose curve doesn't fit into the fit."""

from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from lightning_practices.advisor._fit import Fit, fit_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._schedules import (
    counts_wrong_unit,
    factor_at,
    horizon_of,
    name_of,
    steps_of,
    warmup_of,
)
from lightning_practices.schedules import LearningRateSchedule

_LEAST = 1e-4  # of the first rate, at half of the fit: 1e-3 are three divisions by 10, as usual
_EARLY = 3  # epochs, of a fit whose length isn't known
_FEW = 20  # batches of an epoch: where it has fewer, steps and epochs are hardly told apart


@rule(
    "LP601", "warning",
    practice="The warmup of the learning rate ends early in the fit",
    measures="steps of the warmup against those that the schedule takes in the fit",
    healthy="under 50 % of the fit",
    source="Goyal et al., 2017, arXiv:1706.02677: 5 of 90 epochs",
)  # fmt: skip
def warmup_longer_than_fit(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    found = [
        (name_of(config), warmup_of(config.scheduler), steps_of(config, fit), config.interval)
        for config in seen.schedulers
        if not counts_wrong_unit(seen, config, fit)
    ]
    for callback in seen.callbacks:
        schedule = getattr(callback, "schedule", None)
        if isinstance(schedule, LearningRateSchedule):
            found.append((type(callback).__name__, schedule.warmup_steps, fit.steps, "step"))
    for name, warmup, length, unit in found:
        if warmup and length and warmup > 1 and warmup >= length:
            yield Evidence(
                f"the warmup of {name} takes {warmup} {unit}s and the fit {length}: the full rate"
                " is never reached",
                "shorten the warmup to 5 % of the fit, such as"
                f" {max(length // 20, 1)} {unit}s, or train longer",
                numbers={"warmup": warmup, "length": length},
            )


@rule(
    "LP605", "warning",
    practice="The learning rate stays large enough to train until late in the fit",
    measures="the factor of the rate at half of the fit",
    healthy="1e-3 and more",
    source="questions about a loss that stops falling after the first epochs",
)  # fmt: skip
def rate_vanishes(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for config in seen.schedulers:
        place = _place(config, fit)
        if place is None or counts_wrong_unit(seen, config, fit):
            continue
        factor = factor_at(config.scheduler, place // max(config.frequency, 1))
        if factor is not None and factor < _LEAST:
            yield Evidence(
                f"{name_of(config)} is stepped after each {config.interval}: after {place}"
                f" {config.interval}s the rate is {factor:.1e} of its first value, and training has"
                " ended in effect",
                'step it less often ("interval": "epoch"), or let it decay more slowly',
                numbers={"factor": factor, "place": place},
            )


def _place(config: Any, fit: Fit) -> int | None:
    """Return the steps or epochs at which the rate has to be large enough still."""
    length = fit.steps if config.interval == "step" else fit.epochs
    if not fit.may_stop:
        return None if length is None else length // 2
    if config.interval == "epoch" or fit.batches is None or fit.batches < _FEW:
        return None
    early = _EARLY * fit.batches
    return early if length is None else min(early, length // 2)


@rule(
    "LP606", "error",
    practice="A one-cycle schedule has as many steps as the fit",
    measures="total_steps of OneCycleLR against the steps of the fit",
    healthy="at least the steps of the fit",
    source="torch.optim.lr_scheduler.OneCycleLR raises after its last step",
)  # fmt: skip
def one_cycle_too_short(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for config in seen.schedulers:
        if not isinstance(config.scheduler, OneCycleLR) or fit.may_stop:
            continue
        length, total = steps_of(config, fit), int(config.scheduler.total_steps)
        if length is not None and length > total:
            yield Evidence(
                f"OneCycleLR has {total} steps and the fit takes {length} {config.interval}s: the"
                f" fit fails after {config.interval} {total}",
                "total_steps=int(self.trainer.estimated_stepping_batches)",
                numbers={"total": total, "length": length},
            )


@rule(
    "LP604", "hint",
    practice="A schedule ends with the fit",
    measures="the horizon of a schedule against the steps that it takes in the fit",
    healthy="0.5 to 2 times the fit",
    source="lecture S2; Budzianowski et al. and Li et al., 2020, arXiv:1905.04753",
)  # fmt: skip
def schedule_ends_elsewhere(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for config in seen.schedulers:
        length, horizon = steps_of(config, fit), horizon_of(config.scheduler)
        if not length or not horizon or counts_wrong_unit(seen, config, fit):
            continue
        if not 0.5 <= horizon / length <= 2:
            yield Evidence(
                f"{name_of(config)} takes {horizon} {config.interval}s, and the fit {length}",
                f"give it the length of the fit, {length}",
                numbers={"horizon": horizon, "length": length},
            )


@rule(
    "LP608", "warning",
    practice="A schedule's least rate is below the optimizer's rate",
    measures="eta_min of CosineAnnealingLR against the rate of each group",
    healthy="0 to 0.1 of the rate",
    source="torch.optim.lr_scheduler.CosineAnnealingLR",
)  # fmt: skip
def least_rate_above_rate(seen: Observation) -> Iterator[Evidence]:
    for config in seen.schedulers:
        scheduler = config.scheduler
        if isinstance(scheduler, CosineAnnealingLR):
            low = [rate for rate in scheduler.base_lrs if 0 < rate < scheduler.eta_min]
            if low:
                yield Evidence(
                    f"CosineAnnealingLR has eta_min={scheduler.eta_min:g}, and groups of the"
                    f" optimizer have the rate {min(low):g}: their rate rises instead of falling",
                    f"CosineAnnealingLR(..., eta_min={min(low) / 100:g})",
                )
