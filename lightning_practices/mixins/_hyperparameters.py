"""Hyperparameters of a module: without objects in checkpoints, and as texts for loggers."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, MutableMapping
from copy import copy
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback

from lightning_practices._packages import either
from lightning_practices.data import Augmentation, Preprocessing
from lightning_practices.ensembles import MonteCarloDropout
from lightning_practices.init import Initialization
from lightning_practices.optim import Optimizer
from lightning_practices.schedules import LearningRateSchedule

# Classes of the objects that arguments may be, beside callbacks. torch.load refuses all of them.
_OBJECTS = (
    Augmentation,
    Initialization,
    LearningRateSchedule,
    MonteCarloDropout,
    Optimizer,
    Preprocessing,
)


def leave_out_objects(checkpoint: dict[str, Any], key: str) -> list[str]:
    """Remove the arguments that are objects of practices, or hold one, from a checkpoint.

    Args:
        checkpoint: The checkpoint.
        key: The key under which the checkpoint holds the arguments.

    Returns:
        The names of the removed arguments.
    """
    saved = checkpoint.get(key, {})
    names = [name for name, value in saved.items() if holds_object(value)]
    if names:
        checkpoint[key] = saved = copy(saved)  # it may be the module's own
        for name in names:
            del saved[name]
    return names


def as_texts(value: Any) -> Any:
    """Replace objects of practices by their texts, in a deep copy of hyperparameters."""
    if isinstance(value, either(Callback)):
        return type(value).__name__
    if isinstance(value, _OBJECTS):
        return repr(value)
    if isinstance(value, MutableMapping):
        for key in list(value):
            value[key] = as_texts(value[key])
        return value
    if isinstance(value, list):
        value[:] = map(as_texts, value)
        return value
    if not holds_object(value):
        return value
    if isinstance(value, tuple | set | frozenset):
        return [as_texts(part) for part in value]
    return repr(value)


def holds_object(value: Any, outer: tuple[int, ...] = ()) -> bool:
    """Say whether a value is an object of a practice or contains one, at any depth."""
    if isinstance(value, (*either(Callback), *_OBJECTS)):
        return True
    if id(value) in outer:  # a value that contains itself
        return False
    return any(holds_object(part, (*outer, id(value))) for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    if isinstance(value, Namespace | SimpleNamespace):
        return vars(value).values()
    return ()
