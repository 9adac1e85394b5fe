"""An average of weights that keeps too much of the first weights."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lightning_practices._packages import either
from lightning_practices.advisor._fit import Fit, fit_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_MOST = 0.1  # of the first weights; an average over the last tenth of a fit keeps 5e-5
_NAMES = ("ema", "exponentialmovingaverage", "weightaveraging")
_ASKED = 100_000  # steps at which a callback is asked whether it averages


@rule(
    "LP616", "warning",
    practice="An average of weights forgets the first ones within the fit",
    measures="the share of the first weights in the average at the end, decay ** updates",
    healthy="under 0.1",
    source="Izmailov et al., 2018, arXiv:1803.05407; Tarvainen and Valpola, 2017, arXiv:1703.01780",
)  # fmt: skip
def average_keeps_first_weights(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    if not fit.is_known:
        return
    for callback in seen.callbacks:
        decay, updates = _decay_of(callback), _updates_of(callback, fit)
        if decay is None or not updates or updates < 2:
            continue
        share = _share_of_first(callback, decay, updates)
        if share > _MOST:
            better = max(1 - 10 / updates, 0.5)
            yield Evidence(
                f"{type(callback).__name__} has decay={decay:g} and {updates} updates in this fit:"
                f" {share:.0%} of the average are the first weights",
                f"decay={better:.4g}, whose average covers the last tenth of the fit",
                numbers={"share": share, "decay": decay, "updates": updates},
            )


@rule(
    "LP617", "warning",
    practice="Averaging of weights begins within the fit",
    measures="swa_epoch_start of StochasticWeightAveraging against the epochs of the fit",
    healthy="0.5 to 0.9 of the fit",
    source="Izmailov et al., 2018, arXiv:1803.05407",
)  # fmt: skip
def average_never_begins(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    for callback in seen.callbacks:
        if isinstance(callback, either(StochasticWeightAveraging)) and fit.epochs is not None:
            start: Any = callback._swa_epoch_start
            if isinstance(start, int) and start > fit.epochs:
                yield Evidence(
                    f"StochasticWeightAveraging begins at epoch {start} and the fit has"
                    f" {fit.epochs}: nothing is averaged",
                    "swa_epoch_start=0.75",
                    numbers={"start": start, "epochs": fit.epochs},
                )


def _decay_of(callback: Any) -> float | None:
    """Return the decay of a callback that keeps an exponential average."""
    function = getattr(callback, "_kwargs", {}).get("avg_fn")
    if function is not None:  # of Lightning's WeightAveraging
        one, zero = torch.ones(()), torch.zeros(())
        return float(function(one, zero, torch.tensor(1)))
    name = type(callback).__name__.lower()
    decay = getattr(callback, "decay", None)
    if not any(part in name for part in _NAMES) or not isinstance(decay, float):
        return None
    return decay if 0 < decay < 1 else None


def _updates_of(callback: Any, fit: Fit) -> int | None:
    """Return how often the weights are averaged in the fit."""
    if (ask := getattr(callback, "should_update", None)) is not None:
        if fit.steps is None or fit.epochs is None:
            return None
        steps = sum(bool(ask(step_idx=step)) for step in range(min(fit.steps, _ASKED)))
        return steps + sum(bool(ask(epoch_idx=epoch)) for epoch in range(min(fit.epochs, _ASKED)))
    length = fit.epochs if getattr(callback, "interval", "step") == "epoch" else fit.steps
    start, every = getattr(callback, "start", None) or 0, getattr(callback, "frequency", 1)
    if length is None or not isinstance(start, int | float) or not isinstance(every, int):
        return None
    begun = start * length if isinstance(start, float) else start
    return int((length - begun) // max(every, 1))


def _share_of_first(callback: Any, decay: float, updates: int) -> float:
    """Return the share of the weights that were averaged first."""
    if not getattr(callback, "decay_warmup", False):
        return float(decay ** (updates - 1))
    share = 1.0
    for n in range(1, updates):  # the warmup of this package and of TensorFlow
        share *= min(decay, (1 + n) / (10 + n))
        if share < _MOST:
            break
    return share
