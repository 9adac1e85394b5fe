"""Options of a Trainer that are for trials."""

import math
from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP654", "warning",
    practice="A fit isn't held to a few batches",
    measures="overfit_batches of the Trainer",
    healthy="0; overfit_batch of this package tells whether a batch can be learnt",
    source="Lightning's Trainer: overfit_batches is for finding faults",
)  # fmt: skip
def overfit_batches(seen: Observation) -> Iterator[Evidence]:
    trainer = seen.trainer
    share = 0 if trainer is None or trainer.fast_dev_run else trainer.overfit_batches  # type: ignore[attr-defined]
    if share:
        yield Evidence(
            f"overfit_batches={share} repeats the same few batches, without shuffling, and"
            " validates on training data: it is for a trial",
            "leave overfit_batches out of the Trainer",
            numbers={"overfit_batches": share},
        )


@rule(
    "LP655", "hint",
    practice="A fit sees all training batches",
    measures="fast_dev_run and limit_train_batches of the Trainer, against the loader's batches",
    healthy="all batches, or a limit for a loader without a length",
    source="Lightning's Trainer: fast_dev_run and limit_train_batches are for finding faults",
    explained_by=("LP654",),
)  # fmt: skip
def few_batches(seen: Observation) -> Iterator[Evidence]:
    trainer = seen.trainer
    if trainer is None:
        return
    limit = trainer.limit_train_batches
    runs: int = trainer.fast_dev_run  # type: ignore[attr-defined]
    if runs:
        yield Evidence(
            f"fast_dev_run={runs} ends the fit after {int(runs)} of its batches, without loggers"
            " and checkpoints",
            "leave fast_dev_run out of the Trainer, once the trial is over",
        )
        return
    batches = _batches(seen)
    if limit is None or math.isinf(batches):
        return
    used = limit if isinstance(limit, int) else math.floor(limit * batches)
    if used < batches:
        yield Evidence(
            f"limit_train_batches={limit} uses {used} of {batches} batches of an epoch",
            "leave limit_train_batches out of the Trainer, once the trial is over",
            numbers={"used": used, "batches": batches},
        )


def _batches(seen: Observation) -> float:
    """Return the batches of the only train loader; infinite if unknown."""
    loaders = seen.train.loaders
    try:
        return len(loaders[0]) if len(loaders) == 1 else math.inf
    except (TypeError, NotImplementedError):  # of a dataset without a length
        return math.inf
