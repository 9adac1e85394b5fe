"""What the rules look at: a module, its data, and one step of each kind."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_practices.advisor._samples import Samples
from lightning_practices.advisor._trace import Call, Loss, Statistics, Value, losses_of

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
        seconds: How long the step took, with the recorder on.
    """

    calls: list[Call]
    roots: list[Value]
    batch: Any
    modes: Mapping[str, bool]
    gradients: Mapping[str, Gradient | None] = field(default_factory=dict)
    unregistered: tuple[Tensor, ...] = ()
    seconds: float = 0.0

    @cached_property
    def losses(self) -> list[Loss]:
        """The losses among the calls that reach :attr:`roots`."""
        return losses_of(self.roots)

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
        step: The first training step.
        later_steps: Further training steps, if the first left parameters without a gradient.
        validation_step: The first validation step; ``None`` if there is none.
        optimizers: The optimizers that ``configure_optimizers`` returned.
        schedulers: The configurations of learning rate schedulers, as Lightning keeps them.
        trainer: The user's Trainer, if one was given.
        observer: The Trainer that ran the steps.
        datamodule: The copy of the user's datamodule, if one was given.
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
