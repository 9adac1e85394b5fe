"""Validation that never runs."""

from collections.abc import Iterator

from lightning_practices.advisor._fit import fit_of
from lightning_practices.advisor._monitors import monitors_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP615", "warning",
    practice="A fit with a validation split validates",
    measures="check_val_every_n_epoch, limit_val_batches and max_epochs of the Trainer",
    healthy="at least one validation, or none on purpose: limit_val_batches=0 and no monitor",
    source="Lightning's Trainer",
)  # fmt: skip
def validation_never_runs(seen: Observation) -> Iterator[Evidence]:
    fit, trainer = fit_of(seen), seen.trainer
    if trainer is None or not fit.is_known or seen.validation_step is None:
        return
    every = trainer.check_val_every_n_epoch
    if every is not None and fit.epochs is not None and every > fit.epochs > 0:
        yield Evidence(
            f"the fit has {fit.epochs} epochs and validates every {every}: validation never runs",
            "Trainer(check_val_every_n_epoch=1)",
            numbers={"every": every, "epochs": fit.epochs},
        )
    validated = [one.name for one in monitors_of(seen) if one.name.startswith(_VALIDATED)]
    if trainer.limit_val_batches == 0 and validated:
        yield Evidence(
            f"limit_val_batches=0 turns validation off, and {validated[0]!r} is monitored",
            "Trainer(limit_val_batches=1.0)",
        )


_VALIDATED = ("val", "dev", "eval")  # beginnings of names of values that validation logs
