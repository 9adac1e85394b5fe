"""Batch norm whose running statistics follow too few batches, or too many."""

import math
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices._names import some
from lightning_practices.advisor._fit import Fit, fit_of, mentions
from lightning_practices.advisor._norms_state import was_fresh
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_LAST = 0.9  # a momentum from which the statistics are nearly those of one batch
# On the digits, 0.99 in place of 0.1 raises the validation loss of a convolutional network from
# 0.18 to 0.40 with batches of 4, from 0.20 to 0.22 with 16, and hardly with 32 and more.
_MANY = 32  # samples of a batch whose own statistics are good enough
_SMALL = 0.03  # a momentum that was chosen; a fit too short for the default is a trial
_LEFT = 0.1  # of the first statistics at the end of the fit
_FAR = 0.5  # of a standard deviation, or of a variance's logarithm
_REFRESHED = ("update_bn", "recalibrate", "momentum")  # by what corrects the statistics or sets it
_SOURCE = "torch.nn.BatchNorm2d: new = (1 - momentum) * running + momentum * batch; in Keras, Flax"


@rule(
    "LP351", "warning",
    practice="Batch norm's running statistics are an average over many batches",
    measures="momentum of batch norms in training mode, with less than 32 samples a batch",
    healthy="0.1 by default, and up to 0.5; None is the mean over all batches; 1.0 with a single"
    " batch an epoch",
    source=f"{_SOURCE} and TensorFlow the reverse",
)  # fmt: skip
def statistics_of_the_last_batch(seen: Observation) -> Iterator[Evidence]:
    yield from _last_batch(seen, is_large=False)


@rule(
    "LP352", "hint",
    practice="Batch norm's running statistics are an average over batches",
    measures="the same, with 32 samples a batch and more",
    healthy="0.1 by default, and up to 0.5",
    source=f"{_SOURCE} and TensorFlow the reverse",
)  # fmt: skip
def statistics_of_the_last_large_batch(seen: Observation) -> Iterator[Evidence]:
    yield from _last_batch(seen, is_large=True)


@rule(
    "LP353", "warning",
    practice="Batch norm's running statistics reach those of the data within the fit",
    measures="the share of the first statistics that is left at the end, (1 - momentum) ** steps,"
    " where the data's are far from 0 and 1",
    healthy="under 0.1",
    source=f"{_SOURCE} and TensorFlow the reverse",
)  # fmt: skip
def statistics_never_reached(seen: Observation) -> Iterator[Evidence]:
    batches = _batches_of(fit_of(seen))
    if batches is None or batches < 2 or _is_refreshed(seen):
        return
    found = {
        name: module.momentum
        for name, (module, _) in _averaging(seen).items()
        if 0 < module.momentum <= _SMALL
        and (1 - module.momentum) ** batches > _LEFT
        and was_fresh(seen, name)
        and _is_far(module)
    }
    if found:
        momentum = min(found.values())
        left = (1 - momentum) ** batches
        yield Evidence(
            f"batch norm has momentum={momentum:g} in {some(list(found))}, and the fit {batches}"
            f" batches: {left:.0%} of the running statistics are still the first mean 0 and"
            " variance 1, by which validation normalises",
            "momentum=0.1, the default",
            tuple(found),
            {"momentum": momentum, "left": left},
        )


def _last_batch(seen: Observation, is_large: bool) -> Iterator[Evidence]:
    batches = fit_of(seen).batches
    if batches == 1 or _is_refreshed(seen):
        return
    found = {
        name: module.momentum
        for name, (module, call) in _averaging(seen).items()
        if module.momentum >= _LAST and (call.inputs[0].shape[0] >= _MANY) == is_large
    }
    if found:
        momentum = max(found.values())
        yield Evidence(
            f"batch norm has momentum={momentum:g} in {some(list(found))}: the running statistics,"
            f" by which validation normalises, are to {momentum:.0%} those of the last batch",
            f"momentum={max(1 - momentum, 0.001):.3g}: torch's momentum is the share of the new"
            " batch, that of Keras the share of the old statistics"
            if momentum < 1
            else "momentum=0.1, the default",
            tuple(found),
            {"momentum": momentum},
        )


def _averaging(seen: Observation) -> dict[str, tuple[Any, Call]]:
    """Return the batch norms that average statistics in a step, with a call of each, by name."""
    found: dict[str, tuple[Any, Call]] = {}
    for call in seen.step.calls if seen.steps else ():
        module = seen.modules.get(call.module)
        if call.name not in ("batch_norm", "sync_batch_norm") or not call.data:
            continue
        if not isinstance(module, _BatchNorm) or not isinstance(module.momentum, float | int):
            continue
        if module.running_mean is not None and seen.step.modes.get(call.module):
            found[call.module] = module, call
    return found


def _batches_of(fit: Fit) -> int | None:
    """Return the training batches of a fit."""
    return fit.batches * fit.epochs if fit.is_known and fit.batches and fit.epochs else None


def _is_refreshed(seen: Observation) -> bool:
    """Whether something else makes the statistics, or sets the momentum, in the fit."""
    kinds: list[type] = [type(part) for part in (seen.module, *seen.callbacks)]
    named = any(part in kind.__name__.lower() for kind in kinds for part in _REFRESHED)
    return named or any(mentions(kind, *_REFRESHED, apart_from=_MAKERS) for kind in kinds)


_MAKERS = ("__init__", "configure_optimizers", "setup", "configure_model")


def _is_far(module: Any) -> bool:
    """Whether the statistics of the batches so far are far from the first ones, 0 and 1."""
    count = 0 if module.num_batches_tracked is None else int(module.num_batches_tracked)
    share = 1 - (1 - module.momentum) ** count
    if not share:
        return False
    mean = module.running_mean.double() / share
    variance = (1 + (module.running_var.double() - 1) / share).clamp(min=1e-6)
    means = torch.abs(mean / variance.sqrt()).tolist()
    variances = [abs(math.log(x)) for x in variance.tolist()]
    return median(means) > _FAR or median(variances) > _FAR
