"""Schedules: values that change in the course of training, in any training loop."""

from lightning_practices.schedules._drop_rate import (
    DropLayers,
    DropRate,
    DropSchedule,
    drop_rate_factor,
)
from lightning_practices.schedules._factors import (
    Factor,
    FactorName,
    cosine_decay,
    cosine_restarts,
    cycle_of,
    exponential_decay,
    learning_rate_factor,
    one_cycle,
    power_decay,
    step_decay,
    warmed_up,
)
from lightning_practices.schedules._learning_rate import (
    LearningRateSchedule,
    LearningRateScheduleName,
    linear_warmup,
    plateau,
)

__all__ = [
    "DropLayers",
    "DropRate",
    "DropSchedule",
    "Factor",
    "FactorName",
    "LearningRateSchedule",
    "LearningRateScheduleName",
    "cosine_decay",
    "cosine_restarts",
    "cycle_of",
    "drop_rate_factor",
    "exponential_decay",
    "learning_rate_factor",
    "linear_warmup",
    "one_cycle",
    "plateau",
    "power_decay",
    "step_decay",
    "warmed_up",
]
