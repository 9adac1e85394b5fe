"""An average of weights that keeps too much of the first weights."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.optim.swa_utils import AveragedModel

from lightning_practices._packages import either
from lightning_practices.advisor._fit import Fit, fit_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._own_averages import own_averages
from lightning_practices.advisor._rule import Evidence, rule

_MOST = 0.1  # of the first weights; an average over the last tenth of a fit keeps 5e-5
_NAMES = ("ema", "exponentialmovingaverage", "weightaveraging")
_TEACHERS = ("teacher", "target", "momentum", "student", "online", "byol", "dino")
_WARMED_UP = ("warm", "num_updates", "gamma", "ramp")  # in names of options
_ASKED = 100_000  # steps at which a callback is asked whether it averages


@rule(
    "LP616", "warning",
    practice="An average of weights forgets the first ones within the fit",
    measures="the share of the first weights in the average at the end, decay ** updates; of a copy"
    " in the module with which it validates, how far the module's hooks move it towards weights",
    healthy="under 0.1",
    source="Izmailov et al., 2018, arXiv:1803.05407; Tarvainen and Valpola, 2017, arXiv:1703.01780",
)  # fmt: skip
def average_keeps_first_weights(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    if not fit.is_known:
        return
    for callback in seen.callbacks:
        decay, updates = _decay_of(callback), _updates_of(callback, fit)
        if decay is not None and updates and not _may_be_slow(seen, callback):
            share = _share_of_first(decay, updates, getattr(callback, "decay_warmup", False))
            yield from _evidence(type(callback).__name__, "", decay, updates, share)
    if seen.validation_step is None or not fit.steps:
        return
    for own in own_averages(seen):
        updates = _batches_of(fit) or fit.steps
        share = own.decay ** (updates - 1)
        title = f"{own.name}, with which validation runs, follows {own.source}: it"
        yield from _evidence(title, own.name, round(own.decay, 6), updates, share)
    validated = {name for call in seen.validation_step.calls for name in call.stack}
    for name, module in seen.modules.items():
        if isinstance(module, AveragedModel) and name in validated:
            decay = _asked(module.avg_fn, module.multi_avg_fn)
            if decay is not None:
                share = _share_of_first(decay, fit.steps, False)
                yield from _evidence(f"AveragedModel {name}", name, decay, fit.steps, share)


def _evidence(
    title: str, module: str, decay: float, updates: int, share: float
) -> Iterator[Evidence]:
    if updates > 1 and share > _MOST:
        yield Evidence(
            f"{title} has decay={decay:g} and {updates} updates in this fit: {share:.0%} of the"
            " average are the first weights",
            f"decay={max(1 - 10 / updates, 0.5):.4g}, whose average covers the last tenth of the"
            " fit",
            (module,) if module else (),
            {"share": share, "decay": decay, "updates": updates},
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


def _batches_of(fit: Fit) -> int | None:
    """Return the training batches of a fit, after each of which hooks run."""
    return None if fit.batches is None or fit.epochs is None else fit.batches * fit.epochs


def _may_be_slow(seen: Observation, callback: Any) -> bool:
    """Return whether the average may teach, which is slow on purpose, or its decay is warmed up."""
    if type(callback).__module__.startswith(("lightning.", "pytorch_lightning.", "lightning_prac")):
        return False
    parts = [type(callback).__name__, *(name for name, _ in seen.module.named_children())]
    options = [name for name, x in vars(callback).items() if isinstance(x, int | float) and x]
    return any(part in " ".join(parts).lower() for part in _TEACHERS) or any(
        part in " ".join(options) for part in _WARMED_UP
    )


def _decay_of(callback: Any) -> float | None:
    """Return the decay of a callback that keeps an exponential average."""
    if isinstance(options := getattr(callback, "_kwargs", None), dict):  # Lightning's
        return _asked(options.get("avg_fn"), options.get("multi_avg_fn"))
    name = type(callback).__name__.lower()
    decay = getattr(callback, "decay", None)
    if not any(part in name for part in _NAMES) or not isinstance(decay, float):
        return None
    return decay if 0 < decay < 1 else None


def _asked(function: Any, multi_function: Any) -> float | None:
    """Return the decay of a function that AveragedModel takes; ``None`` without one."""
    average, weight, count = torch.ones(1), torch.zeros(1), torch.tensor(1)
    if multi_function is not None:
        multi_function([average], [weight], count)
        return float(average)
    return None if function is None else float(function(average, weight, count))


def _updates_of(callback: Any, fit: Fit) -> int | None:
    """Return how often the weights are averaged in the fit."""
    if (ask := getattr(copy.copy(callback), "should_update", None)) is not None:
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


def _share_of_first(decay: float, updates: int, is_warmed_up: bool) -> float:
    """Return the share of the weights that were averaged first."""
    if not is_warmed_up:
        return float(decay ** (updates - 1))
    share = 1.0
    for n in range(1, updates):  # the warmup of this package and of TensorFlow
        share *= min(decay, (1 + n) / (10 + n))
        if share < _MOST:
            break
    return share
