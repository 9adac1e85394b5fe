"""What the rules look at: a module, its data, and one step of each kind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_practices.advisor._clipping import Twice
from lightning_practices.advisor._reset_weights import ResetWeights
from lightning_practices.advisor._samples import Samples
from lightning_practices.advisor._trace import (
    Call,
    Loss,
    Statistics,
    Value,
    after_layers,
    losses_of,
)

_Result = TypeVar("_Result")


class Gradient(NamedTuple):
    """The gradient of a parameter after the backward passes of a step.

    Attributes:
        norm: Its Euclidean norm; nan if it isn't finite.
        zero: Whether it is 0 everywhere.
    """

    norm: float
    zero: bool


class Weight(NamedTuple):
    """A parameter or buffer before the first step.

    Attributes:
        shape: Its shape.
        is_trainable: Whether it is a parameter that requires a gradient.
        statistics: Statistics of its elements.
        equal_rows: Share of the rows (along the first dimension) that equal the first row, in a
            tensor of at least two dimensions and two rows; 0 for others.
    """

    shape: tuple[int, ...]
    is_trainable: bool
    statistics: Statistics
    equal_rows: float


@dataclass(eq=False)
class Updates:
    """The updates of an optimizer while the steps ran.

    Attributes:
        count: How often it stepped.
        accumulated: Whether it stepped again although its gradients had not been cleared since its
            last step.
        erased: Whether it stepped without gradients, although a backward pass had made some.
        norm: The norm of its gradients at its first step; ``None`` before.
    """

    count: int = 0
    accumulated: bool = False
    erased: bool = False
    norm: float | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """A training or validation step.

    Attributes:
        calls: The calls of functions, in their order.
        roots: The values that were differentiated: of the training step's loss, or of each
            ``manual_backward``. Of a validation step, the floating point results that it returned.
        batch: The batch as the step received it.
        modes: Whether each module was in training mode when the step ran, by name.
        gradients: The gradient of each trainable parameter by name; ``None`` for one without.
        unregistered: Tensors with a gradient that the backward pass reached and that are neither
            parameters of the module nor of the batch.
        made: Parameters by name that the backward pass reached, and that the module has only since
            the fit has begun.
        seconds: How long the step took, with the recorder on.
        stepped: The optimizers that made a step in it, as places in :attr:`Observation.optimizers`.
        carried: The values of tensors that layers made in the step before and that attributes of
            the module kept, each with the attribute's name.
        read: Sources of the batch's tensors that it has read out of torch, as by ``item``.
    """

    calls: list[Call]
    roots: list[Value]
    batch: Any
    modes: Mapping[str, bool]
    gradients: Mapping[str, Gradient | None] = field(default_factory=dict)
    unregistered: tuple[Tensor, ...] = ()
    seconds: float = 0.0
    stepped: frozenset[int] = frozenset()
    made: Mapping[str, Tensor] = field(default_factory=dict)
    carried: Sequence[tuple[str, Value]] = ()
    read: frozenset[str] = frozenset()

    @cached_property
    def losses(self) -> list[Loss]:
        """The losses among the calls that reach :attr:`roots`."""
        return losses_of(self.roots)

    @cached_property
    def after_layers(self) -> list[Call]:
        """The calls between the last layers with parameters and :attr:`roots`."""
        return after_layers(self.roots)

    @cached_property
    def reach(self) -> frozenset[int]:
        """``id`` of each call on which :attr:`roots` depend."""
        return frozenset(id(call) for root in self.roots for call in root.before())

    def users(self, value: Value) -> list[Call]:
        """Return the calls that take ``value``."""
        return self._users.get(id(value), [])

    def values_of(self, parameter: str) -> list[Value]:
        """Return the values of a parameter that calls take, each once."""
        return list(self._values.get(parameter, {}).values())

    @cached_property
    def _users(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for value in {id(x): x for x in call.inputs}:
                found.setdefault(value, []).append(call)
        return found

    @cached_property
    def _values(self) -> dict[str, dict[int, Value]]:
        found: dict[str, dict[int, Value]] = {}
        for value in (x for call in self.calls for x in call.inputs):
            if value.parameter is not None:
                found.setdefault(value.parameter, {})[id(value)] = value
        return found

    @cached_property
    def first_layers(self) -> list[tuple[Call, Value]]:
        """The first layers with parameters on a way from the batch, each with its data input."""
        found = []
        for call in self.calls:
            if call.outputs and call.output.depth == 1 and call.parameters:
                inputs = [x for x in call.data if x.depth == 0]
                found += [(call, inputs[0])] if inputs else []
        return found


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch that was read.

    Attributes:
        loaded: The batch as its loader gave it.
        received: The batch as a step receives it, after the hooks of the batch's transfer.
        seconds: How long the loader took.
    """

    loaded: Any
    received: Any
    seconds: float


@dataclass(eq=False)
class Split:
    """A split of the data.

    Attributes:
        loader: Its dataloader, or what the user gave in place of one.
        batches: The first batches.
    """

    loader: Any
    batches: list[Batch] = field(default_factory=list)

    @property
    def loaders(self) -> list[DataLoader[Any]]:
        """The loader, or the loaders within a list or dict."""
        found = self.loader
        nested: Iterable[Any]
        if isinstance(found, Mapping):
            nested = found.values()
        else:
            nested = found if isinstance(found, list | tuple) else [found]
        return [one for one in nested if isinstance(one, DataLoader)]

    @cached_property
    def samples(self) -> Samples | None:
        """The samples of the loader's dataset; ``None`` if it has no index, or several loaders."""
        return Samples.of(self.loader) if isinstance(self.loader, DataLoader) else None


@dataclass(eq=False)
class Observation:
    """All that rules look at.

    Attributes:
        module: A copy of the user's module, which has run the steps. Its weights have changed.
        weights: Parameters and floating point buffers before the first step, by name.
        modes: Whether each module was in training mode before the fit, by name.
        train: The training split.
        validation: The validation split; ``None`` if there is none.
        steps: The first training step, and further ones if it left parameters without a gradient:
            up to three, or more where steps are quick.
        validation_step: The first validation step; ``None`` if there is none.
        optimizers: The optimizers that ``configure_optimizers`` returned, and those that a module
            under manual optimization keeps in its attributes.
        schedulers: The configurations of learning rate schedulers, as Lightning keeps them. The
            ``monitor`` of a plateau schedule without one is empty.
        rates: The learning rate of each parameter group before the first step, by optimizer.
        updates: The updates of each optimizer.
        callbacks: The callbacks of the user's Trainer, and copies of those that the module
            configures. None of them has run.
        trainer: The user's Trainer, if one was given.
        observer: The Trainer that ran the steps.
        failure: The exception that ended the steps; ``None`` if there was none. It is that of one
            of torch's losses, or one whose cause is known. If it was in the first step, this has no
            gradients, or is missing.
        failed_in_loss: Whether it is that of one of torch's losses, so that there is a step.
        failed_at: The user's line that led to it, or the line of a backward pass before; may be
            empty.
        unsynced: Names of the tensors that validation logs without sync_dist.
        carried_graphs: Attributes whose tensors the next step's loss depends on, with their graph.
        grown_graphs: Attributes that keep the graphs of all steps.
        clipped_twice: The thresholds of gradients that the module's own hook clips twice.
        resets: The weights that something apart from the optimizer replaced.
        continued_metrics: Names of the metrics that held samples of training when the first
            validation step began, and that it has updated.
        datamodule: The copy of the user's datamodule, if one was given.
        names: Name of each parameter before the first step, by its ``id``.
        originals: ``id`` of each parameter of the user's own module, not of the copy.
        trials: Further steps that rules have run.
        kept: Results of functions under :func:`once`.
    """

    module: LightningModule
    trainer: Trainer | None
    observer: Trainer
    datamodule: Any = None
    weights: dict[str, Weight] = field(default_factory=dict)
    modes: dict[str, bool] = field(default_factory=dict)
    train: Split = field(default_factory=lambda: Split(None))
    validation: Split | None = None
    steps: list[Step] = field(default_factory=list)
    validation_step: Step | None = None
    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    failure: Exception | None = None
    failed_in_loss: bool = False
    failed_at: str = ""
    unsynced: set[str] = field(default_factory=set)
    carried_graphs: tuple[str, ...] = ()
    grown_graphs: tuple[str, ...] = ()
    clipped_twice: list[Twice] = field(default_factory=list)
    resets: ResetWeights = field(default_factory=ResetWeights)
    continued_metrics: tuple[str, ...] = ()
    rates: list[list[float]] = field(default_factory=list)
    updates: list[Updates] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    originals: frozenset[int] = frozenset()
    trials: list[Step] = field(default_factory=list)
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def step(self) -> Step:
        """The first training step."""
        return self.steps[0]

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The modules by name; ``""`` is the LightningModule."""
        return dict(self.module.named_modules())


def once(measure: Callable[[Observation], _Result]) -> Callable[[Observation], _Result]:
    """Let several rules share what a function measures in an observation."""

    @wraps(measure)
    def measured(seen: Observation) -> _Result:
        if measure not in seen.kept:
            seen.kept[measure] = measure(seen)
        result: _Result = seen.kept[measure]
        return result

    return measured
