"""A schedule that gives groups of an optimizer the wrong rates."""

from collections.abc import Iterator

from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._schedules import highest_factor

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


@rule(
    "LP618", "warning",
    practice="The groups of an optimizer keep the ratio of their rates",
    measures="the rates of each optimizer's groups before the first step and after the steps",
    healthy="rates that differ before differ after",
    source="Lightning's guide to optimization: a warmup in optimizer_step",
)  # fmt: skip
def rates_made_alike(seen: Observation) -> Iterator[Evidence]:
    for optimizer, before in zip(seen.optimizers, seen.rates, strict=True):
        after = {float(group.get("lr", 0)) for group in getattr(optimizer, "param_groups", ())}
        if len(set(before)) > 1 and len(after) == 1 and after != {0.0}:
            rates = ", ".join(f"{rate:g}" for rate in sorted(set(before)))
            yield Evidence(
                f"the groups of {type(optimizer).__name__.removeprefix('Lightning')} have the rates"
                f" {rates}, and after a step all have {after.pop():g}: code sets one rate for all",
                'group["lr"] = factor * group["initial_lr"], or a torch scheduler',
            )


@rule(
    "LP619", "warning",
    practice="The function of LambdaLR returns a factor, not a rate",
    measures="the highest value of the function, and the optimizer's rate",
    healthy="1; less, if the optimizer's rate is 0.05 and more, as in the schedule of Transformer",
    source="torch.optim.lr_scheduler.LambdaLR: the initial lr times a given function",
)  # fmt: skip
def function_returns_rate(seen: Observation) -> Iterator[Evidence]:
    for config in seen.schedulers:
        scheduler = config.scheduler
        if not isinstance(scheduler, LambdaLR):
            continue
        highest, rate = highest_factor(scheduler), float(max(scheduler.base_lrs))
        if highest is not None and 0 < highest <= _RATE and 0 < rate < _RATE:
            yield Evidence(
                f"the function of LambdaLR returns {highest:g} at most, and is multiplied by the"
                f" optimizer's lr={rate:g}: the rate is {highest * rate:.1e} at most",
                f"return a factor, 1 for the full rate of {rate:g}",
                numbers={"factor": highest, "lr": rate},
            )


_RATE = 0.05  # a factor is larger, a rate is smaller, as a rule
