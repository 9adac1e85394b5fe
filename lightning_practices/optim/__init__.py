"""Optimizers, their parameter groups and steps, and penalties on weights, in any training loop."""

from lightning_practices.optim._clip_in_step import clip_in_step, clips_in_step
from lightning_practices.optim._optimizer import Optimizer, OptimizerName, make_optimizer
from lightning_practices.optim._parameter_groups import (
    KINDS,
    decayed_weights,
    layer_depths,
    parameter_groups,
)
from lightning_practices.optim._penalty import (
    add_penalty_gradients_,
    penalty,
    soft_threshold_,
)

__all__ = [
    "KINDS",
    "Optimizer",
    "OptimizerName",
    "add_penalty_gradients_",
    "clip_in_step",
    "clips_in_step",
    "decayed_weights",
    "layer_depths",
    "make_optimizer",
    "parameter_groups",
    "penalty",
    "soft_threshold_",
]
