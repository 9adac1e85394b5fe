"""Updates that are too large or too small for the weights, and a loss that answers so."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from lightning_practices.advisor._looks import Look
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

# The change of a step by the weight, root mean squares. Healthy programs and fits of the tests:
# medians of 1e-4 to 0.05 over a fit, and of 0.09 by SGD with momentum and a rate of 0.2; 0.1 to
# 0.4 in the first steps of layers that begin at 0; single weights are at most at 0.06 in the last
# looks. While the loss of an agent rises with its rewards, medians are at most at 0.033.
_LARGE, _HUGE = 0.1, 1.0
_SMALL = 1e-5
_ZERO = 1e-4  # root mean square of weights that begin near 0
_LOOKS, _STEPS = 4, 30  # in how many looks updates are large, and when the loss should fall
_PATIENCE, _LONG = 80, 500  # steps until updates count as too small: at the end of a fit; within it
_RISEN = 1.5  # the loss now by the loss at the start
_SLOW = 1e-4  # updates with which a loss falls slowly
_LEAST = 1e-3  # updates with which a loss of data can rise


@rule(
    "LP806", "warning",
    practice="A step changes weights by about a thousandth",
    measures="root mean square of a step's change, by the weight's, at each optimizer's step",
    healthy="below 0.07 in the last looks, or a loss that falls, or isn't known to be of data",
    source="Karpathy, 2016, cs231n: ratio of weights to updates, about 1e-3",
)  # fmt: skip
def large_updates(run: Run) -> Iterator[Evidence]:
    # Weights that begin near 0 grow in their first steps by as much as they are.
    first = run.looks[0].weights if run.looks else {}
    zero = {name for name, one in first.items() if not one.weight > _ZERO}
    looks = [look for look in run.looks if look.step > 0]
    # Losses of targets that move needn't fall, and those that still fall may be above a prior's.
    stays = run.is_of_data and (run.has_not_fallen or (run.is_no_better and not run.falls))
    learns = run.steps < _STEPS or not stays
    names = {}
    for name in dict.fromkeys(name for look in looks[-1:] for name in look.weights):
        ratios = [*run.ratios(name, looks)]
        is_huge = run.steps >= _STEPS and min(ratios[-_LOOKS:], default=0) > _HUGE
        large = [ratio for ratio in ratios if ratio > _LARGE]
        is_large = is_huge or (not learns and len(large) >= _LOOKS)
        if is_large and name not in zero and looks[-1].weights[name].dims > 1:
            names[name] = fmean(large)
    if names:
        worst = max(names, key=lambda name: names[name])
        yield Evidence(
            f"a step changed {worst} by {names[worst]:.2g} of its size in several looks, and the"
            f" loss doesn't fall; so it was with {len(names)} of {len(looks[-1].weights)}"
            " parameters",
            "divide the learning rate by ten",
            tuple(sorted(names, key=lambda name: -names[name])),
            {"ratio": names[worst]},
        )


@rule(
    "LP807", "warning",
    practice="Steps change the weights",
    measures="median over the weights of a step's change, divided by the weight's size",
    healthy="1e-4 to 0.09 after warmup",
    source="Karpathy, 2016, cs231n: ratio of weights to updates, about 1e-3",
)  # fmt: skip
def small_updates(run: Run) -> Iterator[Evidence]:
    ratios = _ratios(run.looks)
    if len(ratios) < _LOOKS or not _is_slow(run):
        return
    if max(ratios) < _SMALL and all(look.has_gradients for look in run.looks):
        yield Evidence(
            f"steps change the weights by {max(ratios):.1e} of their size, and the loss hardly"
            " falls",
            "multiply the learning rate by ten or more, or end a warmup earlier",
            numbers={"ratio": max(ratios)},
        )


@rule(
    "LP808", "warning",
    practice="The learning rate is one with which the loss falls",
    measures="mean training loss now, divided by that at the start of the fit; the ratio of update"
    " to weight, if targets may move",
    healthy="below 1, for losses of data; others may rise, with updates below 0.1",
    source="Smith, 2017, Cyclical learning rates: the range test; lecture S3",
)  # fmt: skip
def loss_rises(run: Run) -> Iterator[Evidence]:
    trend = run.trend
    if trend is None or trend.start <= 0:
        return
    ratios = _ratios(run.looks)
    # Where targets may move, a loss that rises is no sign of the rate: the steps have to show it.
    least = _LEAST if run.is_of_data else _LARGE
    is_large = max(ratios if run.is_of_data else ratios[-_LOOKS:], default=0) > least
    if trend.now > _RISEN * trend.start and trend.lowest > 0 and is_large:
        yield Evidence(
            f"the training loss has risen from {trend.start:.3g} to {trend.now:.3g} in"
            f" {run.steps} steps: the learning rate is too large",
            "divide the learning rate by ten; begin with a warmup",
            numbers={"start": trend.start, "now": trend.now},
        )


@rule(
    "LP809", "warning",
    practice="The learning rate is as large as the loss allows",
    measures="fall of the training loss; median ratio of update to weight",
    healthy="a fall by 10 % in a hundred steps, or updates above 1e-4 of the weights, for losses of"
    " data",
    source="Smith, 2017, Cyclical learning rates: the range test; lecture S3",
)  # fmt: skip
def loss_falls_slowly(run: Run) -> Iterator[Evidence]:
    trend, ratios = run.trend, _ratios(run.looks)
    if trend is None or len(ratios) < _LOOKS or not _is_slow(run) or not run.is_of_data:
        return
    if _SMALL <= max(ratios) < _SLOW:
        yield Evidence(
            f"the training loss went from {trend.start:.4g} to {trend.now:.4g} alone in"
            f" {run.steps} steps, each of which changes the weights by at most {max(ratios):.1e} of"
            " their size: the learning rate is too small",
            "multiply the learning rate by ten",
            numbers={"start": trend.start, "now": trend.now, "ratio": max(ratios)},
        )


def _is_slow(run: Run) -> bool:
    """Say whether the loss has hardly fallen for long, from a height where it could fall."""
    is_long = run.steps >= (_PATIENCE if run.is_over else _LONG)
    return is_long and run.has_not_fallen and not run.has_learnt


def _ratios(looks: Sequence[Look]) -> list[float]:
    return [x for look in looks if not math.isnan(x := look.typical_ratio)]
