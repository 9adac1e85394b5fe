"""Metrics that get worse, and metrics that don't change, while training goes on."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

from lightning_practices._metric_names import is_of_validation, is_score
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

_LEAST = 8  # values of a metric
_STEPS = 100
_LOST = 0.5  # of the metric at the start
_NOISE = 4.0  # standard errors
_CHECKS = 4
_FALLEN = 0.9  # the training loss by that at the start
_STILL = 1e-6  # change of values of validation, by their size
_HALVED = 0.5
_UNTRAINED = (0.95, 1.05)  # the validation losses by the training loss at the start
_SLOW = 0.02  # change of a validation loss over the fit, by its size


@rule(
    "LP823", "warning",
    practice="The metric gets better while a model trains",
    measures="logged accuracies, scores and rewards: the mean of the first quarter and of the last"
    " one, and the best value in between",
    healthy="better at some time than at the start, or at the end at least half of that",
    source="questions on policy gradients without the minus: the policy learns to avoid rewards",
)  # fmt: skip
def metric_gets_worse(run: Run) -> Iterator[Evidence]:
    if not run.is_over or run.steps < _STEPS or run.optimizers != 1:
        return
    aims = {name: series for name, series in run.metrics.items() if is_score(name)}
    if any(_is_better(series) for series in aims.values()):
        return  # one is given up for another
    for name, series in aims.items():
        values = [x for _, x in series]
        if len(values) < _LEAST:
            continue
        width = max(2, len(values) // 4)
        first, last = values[:width], values[-width:]
        start, now = statistics.fmean(first), statistics.fmean(last)
        lost = start - now
        if (
            lost > _LOST * abs(start)
            and lost > _NOISE * _error(values, width)
            and max(values[width:]) <= max(first)
            and max(last) < min(first)
        ):
            yield Evidence(
                f"{name} was {start:.3g} at the start, was never better than in the first quarter"
                f" of the fit, and is {now:.3g} at its end: the steps lower what they should raise",
                "look at the sign of the loss: optimizers minimise, so that a reward, a"
                " log-likelihood or a score has a minus, as in -(log_prob * advantage).mean()",
                numbers={"start": start, "now": now},
            )
            return


def _is_better(series: Sequence[tuple[int, float]]) -> bool:
    values = [x for _, x in series]
    width = max(2, len(values) // 4)
    gained = statistics.fmean(values[-width:]) - statistics.fmean(values[:width])
    return len(values) >= _LEAST and gained > 0 and gained > _error(values, width)


def _error(values: Sequence[float], width: int) -> float:
    """Return the standard error of the difference of two means, from neighbouring values."""
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    return 1.48 * statistics.median(steps) / math.sqrt(width)


@rule(
    "LP824", "warning",
    practice="Validation shows what is trained",
    measures="the change of the values of validation over the whole fit; the training loss by that"
    " at the start",
    healthy="values that differ; a loss that changes by more than 2 %, or is another than at the"
    " start of the fit",
    source="questions on averages of weights that are never updated, or are too slow for the fit",
)  # fmt: skip
def validation_stands_still(run: Run) -> Iterator[Evidence]:
    trend, losses = run.trend, [one.loss for one in run.checks]
    if not run.is_over or trend is None or len(losses) < _CHECKS or min(trend.start, *losses) <= 0:
        return
    values = [[x for _, x in one] for name, one in run.metrics.items() if is_of_validation(name)]
    if trend.now < _FALLEN * trend.start and all(_moves(one) <= _STILL for one in values):
        what = "all values of validation stayed as they were"
    elif (
        run.is_of_data
        and trend.now < _HALVED * trend.start
        and _moves(losses) < _SLOW
        and all(_UNTRAINED[0] < x / trend.start < _UNTRAINED[1] for x in losses)
    ):
        what = "the validation loss stayed at that of an untrained network"
    else:
        return
    yield Evidence(
        f"{what} ({losses[0]:.4g}, and {losses[-1]:.4g} at the end) over {len(losses)} validations,"
        f" while the training loss fell from {trend.start:.3g} to {trend.now:.3g}",
        "look which network validation_step runs, and on what: a copy of the weights has to be"
        f" updated after each step, with a decay for this fit, such as"
        f" {max(1 - 10 / run.steps, 0.5):.3g}",
        numbers={"first": losses[0], "last": losses[-1], "train": trend.now},
    )


def _moves(values: Sequence[float]) -> float:
    """Return the range of values as a share of their size."""
    size = max((abs(x) for x in values), default=0.0)
    return (max(values) - min(values)) / size if size else 0.0
