"""A schedule that gives all groups of an optimizer the same rate."""

from collections.abc import Iterator

from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_SET_BY_SCHEDULE = {
    "params", "lr", "initial_lr", "max_lr", "min_lr", "base_lr", "momentum", "betas",
    "base_momentum", "max_momentum",
}  # fmt: skip


@rule(
    "LP607", "hint",
    practice="A schedule keeps the ratio of the groups' rates",
    measures="max_lr of the groups of OneCycleLR and CyclicLR that don't differ in other options",
    healthy="one group, or rates that differ",
    source="torch.optim.lr_scheduler.OneCycleLR: max_lr overwrites the rate of each group",
)  # fmt: skip
def one_rate_for_all_groups(seen: Observation) -> Iterator[Evidence]:
    for config in seen.schedulers:
        scheduler = config.scheduler
        if not isinstance(scheduler, OneCycleLR | CyclicLR):
            continue
        groups = scheduler.optimizer.param_groups
        options = [
            {name: value for name, value in group.items() if name not in _SET_BY_SCHEDULE}
            for group in groups
        ]
        rates = {float(rate) for rate in getattr(scheduler, "max_lrs", [])} or {
            float(group["max_lr"]) for group in groups
        }
        if len(groups) > 1 and len(rates) == 1 and all(each == options[0] for each in options):
            yield Evidence(
                f"{type(scheduler).__name__} overwrites the rates of all {len(groups)} groups of"
                f" the optimizer with max_lr={rates.pop():g}: rates that differed are alike now",
                'max_lr=[group["lr"] for group in optimizer.param_groups]',
            )
