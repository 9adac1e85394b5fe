"""The time that each mixin and callback adds to a training step, compared with a bare fit."""

import dataclasses
import functools
import itertools
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from benchmarks.models import Training, train
from benchmarks.rows import Row, Verdict, failure, verdict
from lightning_practices.callbacks import (
    DropRateSchedule,
    EarlyStopping,
    GradientClipping,
    LearningCurves,
    Penalty,
    ProgressiveUnfreezing,
    RecalibrateBatchNorm,
    SkipNonFinite,
    SnapshotEnsemble,
    TrainingAdvisor,
    WeightAveraging,
)
from lightning_practices.mixins import (
    EarlyStoppingMixin,
    FusedLayersMixin,
    GradientClippingMixin,
    LearningRateScheduleMixin,
    OptimizerMixin,
    PenaltyMixin,
    TrainingPractices,
    WeightAveragingMixin,
)
from lightning_practices.timing import Clock, spread_of, take_turns

STEP_MICROSECONDS = 20_000  # a step of a fast training
GOAL_PERCENT = 1.0  # percent by which a practice may lengthen that step
STEPS = 100  # steps per epoch: a cost per epoch counts for a hundredth in a step
_NEVER = 10**9
_WIDTH = 8

Fit = tuple[LightningModule, list[Callback]]


def bare() -> Fit:
    """Return a module with one small layer and no callbacks, which times Lightning alone."""
    return Training(nn.Linear(_WIDTH, _WIDTH)), []


def _callback(make: Callable[..., Callback], **kwargs: Any) -> Callable[[], Fit]:
    return lambda: (bare()[0], [make(**kwargs)])


class _Undecayed(Training):
    """Training without weight decay, since a penalty warns about weight decay."""

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, weight_decay=0.0, fused=True)


class _BuiltIns(Training):
    """Training with Lightning's own clipping and schedule."""

    @override
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = {"scheduler": LambdaLR(optimizer, lambda _: 1.0), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @override
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, 1.0, "norm")  # the same as the Trainer's gradient_clip_val


def _built_ins() -> Fit:
    stopping = callbacks.EarlyStopping("loss", patience=_NEVER, check_on_train_epoch_end=True)
    return _BuiltIns(nn.Linear(_WIDTH, _WIDTH)), [stopping]


def _mixin(
    mixin: type[LightningModule], base: type[LightningModule] = Training, **kwargs: Any
) -> Callable[[], Fit]:
    mixed = type(mixin.__name__, (mixin, base), {})
    return lambda: (mixed(nn.Linear(_WIDTH, _WIDTH), **kwargs), [])


def _with_dropout() -> Fit:
    module, _ = bare()
    module.dropout = nn.Dropout()  # its rate is set, but it doesn't run, as in the bare fit
    return module, [DropRateSchedule()]


def _with_curves() -> Fit:
    folder = tempfile.mkdtemp()
    curves = LearningCurves(f"{folder}/curves.png")
    weakref.finalize(curves, shutil.rmtree, folder)
    return bare()[0], [curves]


# Lightning's own clipping, schedule and early stopping: the peer of TrainingPractices.
BUILT_INS = "LightningBuiltIns"

# The practices, with settings by which none ends the fit.
PRACTICES: dict[str, Callable[[], Fit]] = {
    "DropRateSchedule": _with_dropout,
    "EarlyStopping": _callback(
        EarlyStopping, monitor="loss", patience=_NEVER, check_on_train_epoch_end=True
    ),
    "EarlyStoppingMixin": _mixin(EarlyStoppingMixin, monitor="loss", early_stopping=_NEVER),
    "FusedLayersMixin": _mixin(FusedLayersMixin),
    "GradientClipping": _callback(GradientClipping, value=1.0),
    "GradientClippingMixin": _mixin(GradientClippingMixin, gradient_clipping=1.0),
    "LearningCurves": _with_curves,
    "LearningRateScheduleMixin": _mixin(LearningRateScheduleMixin),
    BUILT_INS: _built_ins,
    "OptimizerMixin": _mixin(OptimizerMixin, optimizer="adamw"),
    "Penalty": lambda: (_Undecayed(nn.Linear(_WIDTH, _WIDTH)), [Penalty(l1=1e-4, l2=1e-4)]),
    "PenaltyMixin": _mixin(PenaltyMixin, _Undecayed, penalty=Penalty(l2=1e-4)),
    "TrainingPractices": _mixin(
        TrainingPractices, monitor="loss", optimizer="adamw", early_stopping=_NEVER
    ),
    "ProgressiveUnfreezing": _callback(ProgressiveUnfreezing, schedule=[{"blocks": ["network"]}]),
    "RecalibrateBatchNorm": _callback(RecalibrateBatchNorm),
    "SkipNonFinite": _callback(SkipNonFinite),
    "SnapshotEnsemble": _callback(SnapshotEnsemble, cycles=2),
    "TrainingAdvisor": _callback(TrainingAdvisor, ignore=["LP8"]),
    "WeightAveraging": _callback(WeightAveraging),
    "WeightAveragingMixin": _mixin(WeightAveragingMixin),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Length of a measurement: ``rounds`` of four fits, each with ``epochs`` timed epochs."""

    rounds: int = 12
    epochs: int = 5


FULL = Plan()
SHORT = Plan(rounds=5, epochs=3)


def measure(practice: str, plan: Plan, clock: Clock = time.perf_counter) -> Row:
    """Return the figures of one practice, or the reason for its failure.

    Fits alternate: without the practice, with it, with it, without it. The row has the median of
    the difference over the rounds, and its interquartile range.
    """
    laps = [
        functools.partial(_microseconds_per_step, fit, plan.epochs, clock)
        for fit in (bare, PRACTICES[practice])
    ]
    try:
        rounds = [take_turns(laps) for _ in range(plan.rounds)]
    except Exception as error:
        return failure(error)
    added = [with_it - without for without, with_it in rounds]
    microseconds = statistics.median(added)
    percent = 100 * microseconds / STEP_MICROSECONDS
    return {
        "status": "ok",
        "reason": None,
        "microseconds_per_step": round(microseconds, 2),
        "percent_of_20ms_step": round(percent, 4),
        "spread": round(spread_of(added), 2),
        "bare_microseconds_per_step": round(statistics.median(first for first, _ in rounds), 2),
        "verdict": verdict(percent, 100 * spread_of(added) / STEP_MICROSECONDS, GOAL_PERCENT),
    }


def verdict_of(row: Row) -> Verdict:
    """Return whether the cost of a practice is within the goal."""
    spread = 100 * row["spread"] / STEP_MICROSECONDS
    return verdict(row["percent_of_20ms_step"], spread, GOAL_PERCENT)


class _EpochStarts(Callback):
    """Records the time at which each epoch begins."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds: list[float] = []

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(self._clock())


def _microseconds_per_step(make: Callable[[], Fit], epochs: int, clock: Clock) -> float:
    """Return the microseconds per step of the shortest epoch.

    An epoch lasts from its start to the start of the next epoch. The shortest epoch counts, since
    other work of the machine only lengthens an epoch. The first epoch is a warm-up, and the last
    epoch only ends the one before it.
    """
    module, callbacks = make()
    starts = _EpochStarts(clock)
    batches = [(torch.randn(_WIDTH, _WIDTH), torch.arange(_WIDTH))]
    cpu = torch.device("cpu")
    train(module, batches, cpu, [starts, *callbacks], steps=STEPS, epochs=epochs + 2)
    seconds = starts.seconds[1:]
    return min(end - start for start, end in itertools.pairwise(seconds)) / STEPS * 1e6
