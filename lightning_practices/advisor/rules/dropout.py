"""Dropout that is too strong, or in the wrong place."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import ACTIVATIONS, DROPOUTS, LAYERS, SOFTMAXES
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._paths import before, is_external
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_MOST = 0.5
_HARMFUL = 0.8  # by Dropout(0.9) for a keep probability of 0.9
_SOURCE = "Srivastava et al., 2014: Dropout, JMLR 15"


@rule(
    "LP501", "hint",
    practice="Dropout drops half of the units at most",
    measures="the rate of each dropout of the training step",
    healthy="0 to 0.5",
    source=_SOURCE,
)  # fmt: skip
def dropout_high(seen: Observation) -> Iterator[Evidence]:
    for call, rate in _dropouts(seen.step):
        if _MOST < rate < _HARMFUL:
            yield _too_high(call, rate)


@rule(
    "LP502", "warning",
    practice="Dropout keeps a fifth of the units at least",
    measures="the rate of each dropout of the training step",
    healthy="0 to 0.5; 0.6 in graph attention networks",
    source=_SOURCE + "; a keep probability given as a rate",
)  # fmt: skip
def dropout_harmful(seen: Observation) -> Iterator[Evidence]:
    for call, rate in _dropouts(seen.step):
        if rate >= _HARMFUL:
            yield _too_high(call, rate)


def _too_high(call: Call, rate: float) -> Evidence:
    return Evidence(
        f"{call} drops {rate:.0%} of the elements and multiplies the rest by"
        f" {1 / (1 - rate) if rate < 1 else float('inf'):.2g}",
        f"nn.Dropout({min(1 - rate, 0.5):.2g}): the argument is the share that is dropped",
        (call.module,),
        {"rate": rate},
    )


@rule(
    "LP503", "warning",
    practice="The output is not dropped",
    measures="whether a dropout comes after the last layer before a loss",
    healthy="dropout before the last layer",
    source=_SOURCE + "; reports of logits that are zeroed at random",
)  # fmt: skip
def dropout_on_output(seen: Observation) -> Iterator[Evidence]:
    for loss in seen.step.losses:
        if not is_external(loss.target):
            continue  # of features against features, as in distillation
        passed = ACTIVATIONS | SOFTMAXES | {"log", "clamp", "__truediv__", "div"}
        for call in before(loss.prediction, passed):
            if call.name in DROPOUTS and _rate_of(call) > 0:
                follows = next(before(call.inputs[0]), None)
                if follows is not None and follows.name in LAYERS:
                    yield Evidence(
                        f"{call} drops elements of the output itself, after {follows} and before"
                        f" {loss.call}: the loss is that of random zeros",
                        "remove it, or put it before the last layer",
                        (call.module,),
                    )


@rule(
    "LP504", "hint",
    practice="No dropout before a batch norm",
    measures="whether a dropout's result reaches a batch norm, with at most one layer between",
    healthy="dropout after the last batch norm",
    source="Li et al., 2019, arXiv:1801.05134: disharmony by variance shift",
)  # fmt: skip
def dropout_before_batch_norm(seen: Observation) -> Iterator[Evidence]:
    found = {}
    for call in seen.step.calls:
        if call.name != "batch_norm" or not call.inputs:
            continue
        for earlier in before(call.inputs[0], LAYERS | ACTIVATIONS):
            if earlier.name in DROPOUTS and _rate_of(earlier) > 0:
                found[id(earlier)] = (earlier, call)
    for dropout, norm in found.values():
        yield Evidence(
            f"{dropout} comes before {norm}: the variance that the batch norm learns in training"
            " isn't the one of evaluation, in which nothing is dropped",
            "put the dropout after the last batch norm",
            (dropout.module,),
        )


def _dropouts(step: Step) -> Iterator[tuple[Call, float]]:
    for call in step.calls:
        if call.name in DROPOUTS and (rate := _rate_of(call)) > 0:
            yield call, rate


def _rate_of(call: Call) -> float:
    """Return the share that a call of dropout drops; 0 if it doesn't run as in training."""
    is_on = call.get(2, "training", not call.name.endswith("alpha_dropout"))
    rate = call.get(1, "p", 0.5)
    return float(rate) if is_on and isinstance(rate, int | float) else 0.0
