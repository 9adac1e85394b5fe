"""A schedule that is stepped by another unit than that of its arguments."""

from collections.abc import Iterator

from torch.optim.lr_scheduler import OneCycleLR

from lightning_practices.advisor._fit import fit_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._schedules import counts_wrong_unit, horizon_of, name_of

_SOURCE = "Lightning's guide to optimizers: interval is 'epoch' unless it is given"


@rule(
    "LP602", "warning",
    practice="A schedule whose arguments count steps is stepped after each step",
    measures="the horizon of a schedule with interval 'epoch', the steps and the epochs of the fit",
    healthy="a horizon below 3 times the epochs, or far from the number of steps",
    source=_SOURCE,
)  # fmt: skip
def steps_counted_by_epoch(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for config in seen.schedulers:
        if config.interval == "epoch" and counts_wrong_unit(seen, config, fit):
            steps = horizon_of(config.scheduler)
            length = f"the fit's {fit.epochs} epochs" if fit.epochs else "a fit"
            yield Evidence(
                f"{name_of(config)} takes {steps} steps and is stepped once an epoch: {length} see"
                " the beginning of its curve alone",
                'return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler,'
                ' "interval": "step"}}',
                numbers={"horizon": float(steps or 0)},
            )


@rule(
    "LP603", "warning",
    practice="A schedule whose arguments count epochs is stepped after each epoch",
    measures="the horizon of a schedule with interval 'step', the steps and the epochs of the fit",
    healthy="a horizon of about the steps, or not of the epochs",
    source=_SOURCE,
)  # fmt: skip
def epochs_counted_by_step(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for config in seen.schedulers:
        if config.interval == "step" and counts_wrong_unit(seen, config, fit):
            epochs = horizon_of(config.scheduler)
            within = f" of the fit's {fit.steps}" if fit.steps else ""
            after = "the fit then fails" if isinstance(config.scheduler, OneCycleLR) else (
                "the rate has then run through its curve, which was meant for the whole fit"
            )  # fmt: skip
            yield Evidence(
                f"{name_of(config)} takes {epochs} steps{within}, as many as the fit has epochs,"
                f" and is stepped after each training step: {after}",
                'use "interval": "epoch", or give the schedule'
                " self.trainer.estimated_stepping_batches",
                numbers={"horizon": float(epochs or 0)},
            )
