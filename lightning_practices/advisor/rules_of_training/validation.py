"""Overfitting, memorising and underfitting, by the validation loss."""

from collections.abc import Iterator, Sequence

from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Check, Run

_RISE = 0.1  # of the validation loss above its minimum, as a share of that
_RELEVANT = 0.1  # the same rise, as a share of the fall before
_CHECKS = 5  # for how many validations
_MEMORISED = 0.1  # the training loss now by that at the start
_USELESS = 0.9  # the lowest validation loss by the first one, or by the prior's
_STILL = 0.02  # fall of the validation loss in the last fifth of the fit
_HIGH = 0.7  # the training loss at the end by the one at the start, or the prior's


# Lecture S4, "Finding better models", in its order.
_REMEDIES = (
    "1. fewer layers or units; 2. regularisation: weight decay (Penalty(l2=1e-4)), dropout, batch"
    " norm; 3. more and better training data; 4. augmentation; and EarlyStopping('val_loss') keeps"
    " the best weights"
)


def _best(checks: Sequence[Check]) -> int:
    return min(range(len(checks)), key=lambda i: checks[i].loss)


@rule(
    "LP811", "warning",
    practice="Training ends before the model overfits",
    measures="the last validation losses above their minimum, while the training loss falls",
    healthy="less than 10 % above for five checks, or less than 10 % of the fall before",
    source="lecture S4: detecting overfitting, solutions; Prechelt, 1998, Early stopping",
)  # fmt: skip
def overfitting(run: Run) -> Iterator[Evidence]:
    checks = run.checks
    if len(checks) <= _CHECKS:
        return
    place = _best(checks)
    best, last = checks[place], checks[-_CHECKS:]
    needed = max(_RISE * abs(best.loss), _RELEVANT * (checks[0].loss - best.loss))
    rises = place < len(checks) - _CHECKS and all(one.loss - best.loss > needed for one in last)
    if rises and last[-1].train < best.train:
        yield Evidence(
            f"the validation loss is {last[-1].loss:.3g}, after {best.loss:.3g} at step"
            f" {best.step:,}, and was above that in each of the last {_CHECKS} checks, while the"
            f" training loss fell from {best.train:.3g} to {last[-1].train:.3g}",
            _REMEDIES,
            numbers={"best": best.loss, "last": last[-1].loss, "best_step": best.step},
        )


@rule(
    "LP812", "warning",
    practice="What is learnt holds for validation",
    measures="the training loss by its start, and the lowest validation loss by the first one and"
    " by the prior's",
    healthy="a validation loss that falls by more than 5 %",
    source="Zhang et al., 2017, Understanding deep learning requires rethinking generalization",
)  # fmt: skip
def memorising(run: Run) -> Iterator[Evidence]:
    checks = run.checks
    if len(checks) <= _CHECKS or run.trend is None or run.trend.start <= 0 or checks[0].loss <= 0:
        return
    best = checks[_best(checks)]
    start = max(run.trend.start, checks[0].train)
    useless = min(x for x in (checks[0].loss, run.prior) if x is not None)
    if checks[-1].train < _MEMORISED * start and best.loss > _USELESS * useless:
        yield Evidence(
            f"the training loss fell from {start:.3g} to {checks[-1].train:.3g}, but the validation"
            f" loss was never below {best.loss:.3g}, and {checks[0].loss:.3g} at first: the model"
            " learns its samples by heart",
            "look whether targets belong to their inputs (shuffled apart?), and whether both splits"
            f" are preprocessed alike; then {_REMEDIES}",
            numbers={"train": checks[-1].train, "validation": best.loss},
        )


@rule(
    "LP813", "hint",
    practice="Training goes on until the validation loss has its minimum",
    measures="fall of the validation loss in the last fifth of the fit",
    healthy="below 2 %",
    source="lecture S4: a model that never enters the overfitting zone",
)  # fmt: skip
def still_falling(run: Run) -> Iterator[Evidence]:
    checks = run.checks
    if not run.is_over or len(checks) <= _CHECKS:
        return
    before = checks[min(len(checks) - 2, int(0.8 * len(checks)))]
    fall = before.loss - checks[-1].loss
    if _best(checks) == len(checks) - 1 and fall > _STILL * abs(before.loss):
        yield Evidence(
            f"the validation loss was still falling at the end: {checks[-1].loss:.3g}, after"
            f" {before.loss:.3g} at step {before.step:,}",
            "train longer, by a larger max_epochs",
            numbers={"before": before.loss, "last": checks[-1].loss},
        )


@rule(
    "LP814", "hint",
    practice="The model can fit its training data",
    measures="the training loss at the end of the fit, divided by that at its start or"
    " the prior's, for losses of data",
    healthy="below 0.7",
    source="lecture S4: detecting underfitting, more layers, more units, better data",
)  # fmt: skip
def training_loss_stays_high(run: Run) -> Iterator[Evidence]:
    trend = run.trend
    if not run.is_over or trend is None or trend.start <= 0 or run.steps < 100:
        return
    if not run.is_of_data:
        return  # what can be reached isn't known
    before = trend.start if run.prior is None else min(trend.start, run.prior)
    if trend.now > _HIGH * before:
        yield Evidence(
            f"the training loss is {trend.now:.3g} at the end, and {before:.3g} at the start or if"
            " frequencies are predicted",
            "1. more layers; 2. more units; 3. train longer; if that doesn't help, better data and"
            " labels",
            numbers={"start": trend.start, "now": trend.now},
        )
