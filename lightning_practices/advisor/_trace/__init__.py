"""The functions that a step calls on tensors: a graph of calls and values.

- ``calls``: a call, and the tensors that go in and come out.
- ``recorder``: record the calls while a step runs.
- ``losses``: the losses among the calls, with their predictions and targets.
"""

from lightning_practices.advisor._trace.calls import Call, Statistics, Value
from lightning_practices.advisor._trace.losses import (
    CLASSES,
    LOSSES,
    REGRESSION,
    Loss,
    after_layers,
    losses_of,
)
from lightning_practices.advisor._trace.recorder import Recorder

__all__ = [
    "CLASSES",
    "LOSSES",
    "REGRESSION",
    "Call",
    "Loss",
    "Recorder",
    "Statistics",
    "Value",
    "after_layers",
    "losses_of",
]
