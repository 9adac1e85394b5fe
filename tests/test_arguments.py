"""Nonsense for each argument of each public function and class: an error names it and shows it.

The arguments are found by introspection, so a new one is tested without a further line. What an
argument may be is read from its annotation.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from os import PathLike
from typing import Any, Literal, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_practices import data, mixins, schedules
from lightning_practices._arguments import shown

pytestmark = pytest.mark.plain

LAYERS = (
    "callbacks", "mixins", "schedules", "optim", "ensembles", "surgery", "nn", "modules", "plugins",
    "data",
    "init",
)  # fmt: skip

NAN, INF = float("nan"), float("inf")


class Strange:
    """An object of no use."""

    def __repr__(self) -> str:
        return "<strange>"


STRANGE = Strange()
NUMBERS: list[Any] = [NAN, INF, -1, 1.5, -0.5, 10**400]
OTHERS: list[Any] = [
    None, True, "0.5", "", b"x", [], [5], [STRANGE], {}, {5: 5}, STRANGE, Strange,
    torch.tensor(0.5), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64),
]  # fmt: skip

# What is made rather than given: results, and base classes that have no arguments of their own.
RESULTS = {
    "Audit", "AuditedLayer", "Block", "Blocks", "Folded", "InitReport", "Initialized", "Kept",
    "Measured", "MonteCarloPrediction", "NonFiniteParameter",
    "NonFiniteReport", "Replaced", "Report", "ScheduledRate", "Skipped",
    "SwapReport", "SwappedLayer",
}  # fmt: skip

# The arguments that torch and a process group check.
FOREIGN = {"device", "dtype", "process_group"}
KERNELS = {"norm_activation.x", "norm_activation.residual"}  # the kernels check tensors
IN_MESSAGES = {"check_entry.name"}  # names of arguments, which our own code gives


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(net().parameters(), 0.1, fused=True)


def loader() -> DataLoader[Any]:
    return DataLoader([torch.zeros(1)])  # type: ignore[arg-type]


# Arguments without a default, by their names; for a name of two meanings, by the callable too.
NEEDED: dict[str, Callable[[], Any]] = {
    "a": net,
    "after": lambda: nn.ReLU,
    "at_once": lambda: 1,
    "attention_dropout": lambda: 0.1,
    "augmentation": lambda: data.Augmentation("flip"),
    "b": net,
    "batch": lambda: torch.zeros(1, 2),
    "batches": list,
    "before": lambda: nn.Dropout,
    "block": lambda: nn.Linear,
    "block_size": lambda: 3,
    "cycles": lambda: 2,
    "d_model": lambda: 4,
    "dropout": lambda: 0.1,
    "example": lambda: torch.zeros(1, 2),
    "factor": lambda: schedules.cosine_decay(5),
    "fit_steps": lambda: 9,
    "forward": lambda: lambda block, x: x,
    "hidden_dim": lambda: 4,
    "in_features": lambda: 2,
    "kind": lambda: "weight",
    "loader": list,
    "augmented_loader.loader": loader,
    "max_norm": lambda: 1.0,
    "members": lambda: [net()],
    "mlp_dim": lambda: 4,
    "mode": lambda: "row",
    "model": net,
    "monitor": lambda: "val_loss",
    "monte_carlo_dropout": lambda: "regression",
    "n": lambda: 1,
    "nhead": lambda: 2,
    "norm": lambda: nn.BatchNorm1d(2),
    "activation": lambda: "relu",
    "x": lambda: torch.zeros(2, 2),
    "normalized_shape": lambda: 2,
    "num_channels": lambda: 4,
    "num_classes": lambda: 2,
    "num_clusters": lambda: 2,
    "num_features": lambda: 2,
    "num_groups": lambda: 2,
    "num_heads": lambda: 2,
    "optimizer": sgd,
    "make_optimizer.optimizer": lambda: "sgd",
    "out_features": lambda: 2,
    "p": lambda: 0.5,
    "params": lambda: net().parameters(),
    "path": lambda: "schedule.yaml",
    "progress": lambda: 0.5,
    "schedule": lambda: "cosine",
    "write_schedule.schedule": lambda: [{"blocks": ["head"]}],
    "steps": lambda: 5,
    "t": lambda: 1,
    "task": lambda: "regression",
    "threshold": lambda: 0.5,
    "train_dataloader": loader,
    "val_dataloader": loader,
    "weights": lambda: [torch.ones(2)],
    "where": lambda: ["0"],
}

# Arguments whose default doesn't let others be tested.
ALSO: dict[str, dict[str, Any]] = {
    "LearningRateSchedule.steps": {"name": "step"},
    "LearningCurves.mode": {"monitor": "val_loss"},
    "ProgressiveUnfreezing.backbone": {"head": "head"},
    "ProgressiveUnfreezing.head": {"backbone": "backbone"},
    "parameter_groups.layer_decay": {"lr": 0.1},
    "Optimizer.layer_decay": {"lr": 0.1},
}

# Nonsense by its annotation that has a meaning, or that has none and does no harm.
TAKEN: dict[str, list[Any]] = {
    **{
        f"{norm}.normalized_shape": [[5]]
        for norm in ("AddDropoutLayerNorm", "LayerNorm", "LayerNorm2d", "RMSNorm")
    },
    "EarlyStopping.min_delta": [[5]],
    "EarlyStopping.stopping_threshold": [INF, -1, -0.5],
    "EarlyStopping.divergence_threshold": [INF, -1, -0.5],
    "AddDropoutLayerNorm.layer_scale": [-1, -0.5],
    "BatchNorm1d.activation_parameter": [-1, -0.5],
    "BatchNorm2d.activation_parameter": [-1, -0.5],
    "BatchNorm3d.activation_parameter": [-1, -0.5],
    "FitPreprocessing.entry": [-1],
    "augmented_loader.entry": [-1],
    **{
        f"{owner}.{name}": [-1]
        for owner in ("AugmentationMixin", "DataPractices")
        for name in ("augment_entry", "augment_target")
    },
    "GradientClipping.value": [INF],
    "GradientClippingMixin.gradient_clipping": [INF],
    "LabelSmoothingCrossEntropyLoss.ignore_index": [-1],
    "MonteCarloDropout.seed": [-1],
    "monte_carlo_dropout.seed": [-1],
    "SyncBatchNorm.activation_parameter": [-1, -0.5],
    "TrainingPractices.gradient_clipping": [INF],
    "clip_in_step.max_norm": [INF],
    "clip_in_step.norm_type": [INF, -1, -0.5],
    "drop_rate_factor.progress": [INF],
    "make_optimizer.lr": [torch.tensor(0.5)],
    "make_optimizer.params": [one for one in OTHERS if isinstance(one, torch.Tensor)],
    # a tensor of batches
    "fit_drop_clusters.batches": [torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)],
    "recalibrate_batch_norm.loader": [torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)],
    "soft_threshold_.threshold": [INF],
}


class Argument(NamedTuple):
    """An argument of a public callable."""

    owner: str
    call: Callable[..., Any]
    name: str
    hint: Any

    @property
    def key(self) -> str:
        return f"{self.owner}.{self.name}"


def made(cls: type) -> Callable[..., Any]:
    """Return what makes an object of a class; a mixin is extended by a module first."""
    if issubclass(cls, mixins.PracticeMixin):
        return type(cls.__name__, (cls, LightningModule), {})
    if issubclass(cls, mixins.DataPracticeMixin):
        return type(cls.__name__, (cls, LightningDataModule), {})
    return cls


def arguments() -> Iterator[Argument]:
    for layer in LAYERS:
        room = import_module(f"lightning_practices.{layer}")
        for owner in room.__all__:
            call = getattr(room, owner)
            is_class = inspect.isclass(call)
            if owner in RESULTS or not (is_class or inspect.isfunction(call)):
                continue
            hints = typing.get_type_hints(call.__init__ if is_class else call)
            for name, parameter in inspect.signature(call).parameters.items():
                is_open = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                if name not in FOREIGN and not is_open and hints[name] is not Any:
                    yield Argument(owner, made(call) if is_class else call, name, hints[name])


ARGUMENTS = [argument for argument in arguments() if argument.key not in KERNELS | IN_MESSAGES]


def kinds(hint: Any) -> list[Any]:
    """Return the members of a union of types."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(hint) for kind in kinds(member)]
    return [hint]


def nonsense(argument: Argument) -> list[Any]:
    """Return the values that an argument's annotation excludes, or its unit does."""
    return [value for value in [*NUMBERS, *OTHERS] if not _may_be(value, argument)]


def _may_be(value: Any, argument: Argument) -> bool:
    taken = TAKEN.get(argument.key, [])
    if any(
        value is one or (type(value) is type(one) and shown(value) == shown(one)) for one in taken
    ):
        return True
    return any(_fits(value, kind) for kind in kinds(argument.hint))


def _fits(value: Any, kind: Any) -> bool:
    """Say whether a value may be right for an annotation; numbers are never right by type alone."""
    origin, inside = typing.get_origin(kind) or kind, typing.get_args(kind)
    if isinstance(value, torch.Tensor):
        return kind is torch.Tensor
    if kind is Any or origin is Literal:
        return kind is Any or value in inside
    if origin is type(None):
        return value is None
    if value is True or value is None or isinstance(value, int | float):
        if value == 1.5:
            return origin is float
        return origin is bool and value is True
    if origin in (Sequence, Iterable) and isinstance(value, list | dict):
        is_open = isinstance(value, list) or origin is Iterable
        return is_open and (not value or inside == (Any,))  # a list of nonsense is nonsense
    if isinstance(value, dict) and origin is Mapping:
        return not value
    if isinstance(value, str):
        return origin in (str, PathLike) and value != ""
    if origin is Callable or (isinstance(origin, type) and origin.__name__ == "Callable"):
        return callable(value)
    return False


EMPTY_REFUSED = {  # what has to have an item
    "EarlyStopping.monitor", "Ensemble.members", "LightningEnsemble.members",
    "LearningCurves.metrics", "DropRate.layers", "DropRateSchedule.layers",
    "ProgressiveUnfreezing.by", "blocks.by", "unfreezing_schedule.by",
    "ProgressiveUnfreezing.schedule", "write_schedule.schedule", "FineTuningMixin.fine_tuning",
}  # fmt: skip


SHARES = {  # of what a float may be at most 1
    "AddDropoutLayerNorm.drop_path", "AddDropoutLayerNorm.p", "DropConnectLinear.p",
    "DropRateSchedule.duration", "LabelSmoothingBCEWithLogitsLoss.label_smoothing",
    "LabelSmoothingCrossEntropyLoss.label_smoothing", "LearningRateSchedule.floor",
    "Optimizer.layer_decay", "ProgressiveUnfreezing.decay", "WeightAveraging.decay",
    "WeightAveraging.start", "cosine_decay.floor", "learning_rate_factor.floor", "one_cycle.floor",
    "parameter_groups.layer_decay", "plateau.floor",
}  # fmt: skip


def call_of(argument: Argument, value: Any) -> Any:
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(argument.call).parameters.items():
        is_open = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_open:
            given[name] = NEEDED.get(f"{argument.owner}.{name}", NEEDED.get(name, object))()
    if argument.owner == "MonteCarloDropoutMixin":
        given["monte_carlo_dropout"] = "regression"
    return argument.call(**{**given, **ALSO.get(argument.key, {}), argument.name: value})


def error_of(argument: Argument, value: Any) -> Exception | None:
    try:
        call_of(argument, value)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("argument", ARGUMENTS, ids=[one.key for one in ARGUMENTS])
def test_nonsense_is_an_error_that_names_the_argument(argument: Argument) -> None:
    values = nonsense(argument)
    if argument.key in EMPTY_REFUSED:
        values = [*values, []]
    if argument.key in SHARES:
        values = [*values, 1.5]
    assert values
    for value in values:
        error = error_of(argument, value)
        assert type(error) in (TypeError, ValueError), f"{shown(value)}: {error!r:.500}"
        message = str(error)
        assert re.search(rf"\b{argument.name}\b", message), f"{shown(value)}: {message}"
        assert any(text in message for text in _texts(value)), f"{shown(value)}: {message}"
        assert len(message) < 2000


def _texts(value: Any) -> list[str]:
    """Return how an error may quote a value: as a whole, or the item that is wrong."""
    items = list(value) if isinstance(value, list | dict) else [value]
    quoted = [shown(value), *map(shown, items)]
    if "\n" in quoted[0]:
        quoted.append(f"an object of torch.{type(value).__name__}")  # in place of many lines
    return [*quoted, *(item.__name__ for item in items if isinstance(item, type))] + (
        [] if items else ["()", "it is empty"]
    )
