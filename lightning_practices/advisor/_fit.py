"""The plan of a fit: its length, and how a module is trained in it."""

import math
from typing import NamedTuple, TypeVar

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from lightning_practices._codes import codes_of as codes_of
from lightning_practices._codes import mentions as mentions
from lightning_practices._packages import either
from lightning_practices.advisor._observation import Observation

_Callback = TypeVar("_Callback", bound=Callback)

_FOREVER = 1000  # epochs of a Trainer without any limit


class Fit(NamedTuple):
    """The length of a fit. ``None`` stands for a length that isn't known.

    Attributes:
        is_known: Whether the user's Trainer was given.
        batches: Training batches of an epoch.
        epochs: Epochs; one that ``max_steps`` cuts short counts.
        steps: Optimizer steps. Unknown under manual optimization, and without a Trainer.
        may_stop: Whether a callback may end it before its limits.
    """

    is_known: bool
    batches: int | None
    epochs: int | None
    steps: int | None
    may_stop: bool


def fit_of(seen: Observation) -> Fit:
    """Return the plan of the fit, as the user's Trainer has it."""
    found = seen.observer.num_training_batches
    batches = None if math.isinf(found) else int(found)
    trainer = seen.trainer
    if trainer is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return Fit(False, batches, None, None, True)
    may_stop = bool(callbacks_of(seen, Timer)) or bool(callbacks_of(seen, LightningEarlyStopping))
    most = None if trainer.max_steps == -1 else trainer.max_steps
    epochs = trainer.max_epochs
    if epochs is None and most is None and not may_stop:
        epochs = _FOREVER
    epochs = None if epochs == -1 else epochs
    if batches is None or not batches:
        return Fit(True, batches, epochs, most, may_stop)
    if not seen.module.automatic_optimization or callbacks_of(seen, GradientAccumulationScheduler):
        return Fit(True, batches, epochs, None, may_stop)
    by_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    limits = [most, None if epochs is None else by_epoch * epochs]
    steps = min((limit for limit in limits if limit is not None), default=None)
    epochs = None if steps is None else math.ceil(steps / by_epoch)
    return Fit(True, batches, epochs, steps, may_stop)


def validations_of(seen: Observation, fit: Fit) -> int | None:
    """Return the validations of a fit with a validation split; ``None`` if unknown."""
    trainer = seen.trainer
    if trainer is None or fit.epochs is None:
        return None
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    if every is None or fit.batches is None:
        return None
    share = interval if isinstance(interval, float) else interval / max(fit.batches, 1)
    return int(fit.epochs // every * max(1 / share, 1)) if share > 0 else None


def callbacks_of(seen: Observation, kind: type[_Callback]) -> list[_Callback]:
    """Return the callbacks of the fit that are of a class, of either package."""
    return [one for one in seen.callbacks if isinstance(one, either(kind))]
