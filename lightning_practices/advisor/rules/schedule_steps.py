"""A schedule that never acts."""

from collections.abc import Iterator

from lightning_practices.advisor._fit import fit_of, mentions
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._schedules import name_of, steps_of

_STEPPED = 1  # the count of a scheduler that nothing but its constructor has stepped


@rule(
    "LP609", "warning",
    practice="Under manual optimization the module steps its schedules",
    measures="steps of the schedulers in the traced steps, and whether the module asks for them",
    healthy="the module calls lr_schedulers()",
    source="Lightning's guide to manual optimization",
)  # fmt: skip
def schedule_never_stepped(seen: Observation) -> Iterator[Evidence]:
    if seen.module.automatic_optimization or mentions(type(seen.module), "lr_schedulers"):
        return
    if any(mentions(type(one), "lr_schedulers", "lr_scheduler_configs") for one in seen.callbacks):
        return
    for config in seen.schedulers:
        if getattr(config.scheduler, "_step_count", None) == _STEPPED:
            yield Evidence(
                f"optimization is manual, so Lightning doesn't step {name_of(config)}, and the"
                " module doesn't either: the rate never changes",
                "call self.lr_schedulers().step() after the optimizer's step",
            )


@rule(
    "LP610", "hint",
    practice="A schedule acts within the fit",
    measures="how often Lightning steps a schedule in the fit",
    healthy="twice and more",
    source="Lightning's guide to optimizers: interval and frequency",
)  # fmt: skip
def schedule_acts_too_late(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for config in seen.schedulers:
        steps = steps_of(config, fit)
        if seen.module.automatic_optimization and steps is not None and steps < 2:
            yield Evidence(
                f"the fit ends before {name_of(config)} has changed the rate: it is stepped every"
                f" {config.frequency} {config.interval}s",
                '"interval": "step", and a horizon in steps',
            )
