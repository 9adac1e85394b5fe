"""One look: the measures of a step, read at its end."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_practices._names import plain_name
from lightning_practices.advisor import Look
from lightning_practices.callbacks._trainer.optimizers import place_of
from lightning_practices.callbacks._training_advisor.forward import BatchNumbers, Forward
from lightning_practices.callbacks._training_advisor.graph import Graph
from lightning_practices.callbacks._training_advisor.readings import Readings
from lightning_practices.callbacks._training_advisor.targets import Given
from lightning_practices.callbacks._training_advisor.weights import AroundStep
from lightning_practices.callbacks._training_advisor.zeroing import Zeroing

_LOSSES = 8  # of a step whose graphs are read
_BATCHES = 64  # until an optimizer steps


class OpenLook:
    """The measures of a step that runs.

    Args:
        trainer: The Trainer.
        module: The module of the fit.
        batch: The first batch.

    Attributes:
        step: Optimizer steps taken before.
        zeroing: Follows the gradients of each optimizer that has stepped, by its index.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        self.step = trainer.global_step
        self.zeroing: dict[int, Zeroing] = {}
        self._trainer, self._module = trainer, module
        self._names = {id(p): plain_name(name) for name, p in module.named_parameters()}
        self._optimizers = {
            self._names[id(p)]: place
            for place, optimizer in enumerate(trainer.optimizers)
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in self._names
        }
        self._readings = Readings()
        self._batch = BatchNumbers(batch, self._readings)
        self._given = Given(batch)
        self._forwards: list[Forward] = []
        self._steps: dict[int, AroundStep] = {}
        self._places: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._tables: set[str] = set()
        self._batches = 0

    def next_batch(self, batch: Any) -> None:
        """Note that the next losses are of this batch, as gradients are accumulated."""
        self._given = Given(batch)

    def graph(self, loss: Tensor) -> Graph:
        """Return the graph of a loss."""
        return Graph(loss, self._names)

    def note_loss(self, loss: Tensor, graph: Graph, scale: float) -> None:
        """Measure the forward pass of a loss that is about to be differentiated.

        Args:
            loss: The loss.
            graph: Its graph.
            scale: What Lightning has multiplied the loss with; nan if that isn't known.
        """
        if len(self._forwards) < _LOSSES:
            new = Forward(self._module, graph, self._optimizers, self._readings)
            new.note_losses(loss.detach() / scale, self._given)
            self._forwards.append(new)
            shift = len(self._places)
            for name, place in graph.places.items():
                if name not in self._places:
                    self._places[name] = place + shift
                    self._ends[name] = graph.ends[name] + shift
            self._tables |= graph.tables

    @property
    def places(self) -> dict[str, int]:
        """The places of the parameters in the order of the forward pass, by name."""
        return self._places

    def note_step(self, optimizer: Optimizer) -> None:
        """Measure an optimizer that is about to step, and again after its step."""
        place = place_of(self._trainer, optimizer)
        if place in self._steps:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]

        def follow() -> None:
            self.zeroing[place] = Zeroing(parameters)

        self._steps[place] = AroundStep(optimizer, place, self._names, self._readings, follow)

    def is_complete(self) -> bool:
        """Say, at the end of a batch, whether an optimizer has stepped."""
        self._batches += 1
        return bool(self._steps) or self._batches >= _BATCHES

    def discard(self) -> None:
        """Remove the hooks of optimizers that have not stepped."""
        for one in self._steps.values():
            one.handle.remove()

    def closed(self) -> Look:
        """Read what was measured. The host waits for the device."""
        self.discard()
        numbers = self._readings.read()
        look = Look(self.step, batch=self._batch.look(numbers))
        for forward in self._forwards:
            look.activations += forward.activations(numbers)
            look.losses += forward.losses(numbers)
        look.is_whole = bool(self._forwards) and all(one.is_whole for one in self._forwards)
        for place, one in self._steps.items():
            look.weights |= one.looks(numbers, self._places, self._ends, self._tables)
            if (norms := one.norms(numbers)) is not None:
                look.norms[place] = norms
        return look
