"""One step of a fit, measured."""

import math
import statistics
from dataclasses import dataclass, field
from typing import NamedTuple


class WeightLook(NamedTuple):
    """A parameter around one step of its optimizer.

    Attributes:
        gradient: Root mean square of its gradient, before clipping; nan if that isn't finite.
        weight: Root mean square of the parameter before the step.
        update: Root mean square of the step's change; nan if the optimizer didn't step.
        optimizer: Index of its optimizer.
        place: Its place among the parameters in the order of the forward pass; -1 if unknown.
        dims: Its number of dimensions; 1 for a scale of channels.
        is_table: Whether its rows are looked up, as an embedding's are.
        end: The place of the last weight after it, on its branch; -1 if unknown.

    Example:
        >>> from lightning_practices.advisor import WeightLook
        >>> WeightLook(gradient=0.1, weight=2.0, update=0.002).ratio
        0.001
    """

    gradient: float
    weight: float
    update: float
    optimizer: int = 0
    place: int = -1
    dims: int = 2
    is_table: bool = False
    end: int = -1

    @property
    def ratio(self) -> float:
        """The root mean square of the change, as a multiple of the parameter's."""
        return self.update / self.weight if self.weight > 0 else float("nan")


class ActivationLook(NamedTuple):
    """The result of an activation in a batch.

    Attributes:
        modules: Names of the activation's module, if it is one, and of the layer before it.
        kind: ``"relu"``, ``"tanh"`` or ``"sigmoid"``.
        units: The number of units; 0 for other kinds than ``"relu"``.
        dead: The units that were positive nowhere in the batch, if they are most of all.
        saturated: Share of the elements at the ends of the range of tanh or sigmoid.

    Example:
        >>> from lightning_practices.advisor import ActivationLook, Look, Run, training_rules
        >>> dead = ActivationLook(("relu", "layer"), "relu", units=4, dead=(0, 1, 2, 3))
        >>> run = Run(steps=40, looks=[Look(step, activations=[dead]) for step in range(0, 41, 10)])
        >>> [rule.id for rule in training_rules() if rule.findings(run)]
        ['LP804']
    """

    modules: tuple[str, ...]
    kind: str
    units: int = 0
    dead: tuple[int, ...] = ()
    saturated: float = 0.0


class LossLook(NamedTuple):
    """A loss in a batch.

    Attributes:
        kind: ``"cross_entropy"``, ``"bce"``, ``"mse"``, ``"smooth_l1"`` or ``"huber"``.
        value: Its mean.
        prior: Its mean if the target's frequencies, its mean or its median were predicted for each
            sample.
        classes: The number of classes in the batch; 0 for other kinds than ``"cross_entropy"``.
        first_class: The class of the first sample.
        is_data: Whether the target comes from the batch, rather than from a network, an
            environment or a random generator in the step.
        total: The whole loss of the step; nan if that isn't known.

    Example:
        >>> from lightning_practices.advisor import Look, LossLook, Run
        >>> loss = LossLook("cross_entropy", 0.3, prior=2.3, is_data=True, total=0.3)
        >>> run = Run(steps=10, looks=[Look(step=10, losses=[loss], is_whole=True)])
        >>> run.prior, run.has_learnt
        (2.3, True)
    """

    kind: str
    value: float
    prior: float
    classes: int = 0
    first_class: int = -1
    is_data: bool = True
    total: float = math.nan


class BatchLook(NamedTuple):
    """A batch.

    Attributes:
        sums: Sums over its tensors, by which a batch is recognised.
        equal: Share of its samples that equal the first one.
        samples: The number of its samples.
        is_constant: Whether each of its tensors holds one number alone: it isn't data.

    Example:
        >>> from lightning_practices.advisor import BatchLook, Look, Run, training_rules
        >>> batch = BatchLook(sums=(3.5, 64.0), equal=0.1, samples=32)
        >>> run = Run(steps=40, looks=[Look(step, batch=batch) for step in range(0, 41, 10)])
        >>> [rule.practice for rule in training_rules() if rule.findings(run)]
        ['Batches differ from each other']
    """

    sums: tuple[float, ...]
    equal: float
    samples: int
    is_constant: bool = False


class Norms(NamedTuple):
    """The norm of an optimizer's gradients before and after clipping.

    Attributes:
        before: The norm before clipping.
        after: The norm after clipping.

    Example:
        >>> from lightning_practices.advisor import Look, Norms, Run, training_rules
        >>> norms = {0: Norms(before=5.0, after=1.0)}
        >>> run = Run(looks=[Look(step, norms=norms) for step in range(20, 120, 10)])
        >>> [rule.practice for rule in training_rules() if rule.findings(run)]
        ['Clipping is for rare large gradients']
    """

    before: float
    after: float


@dataclass
class Look:
    """One step of a fit, measured.

    Attributes:
        step: Optimizer steps taken before.
        weights: The parameters by name.
        activations: The activations.
        losses: The losses.
        batch: The batch; ``None`` if it holds no tensor of several samples.
        norms: The norms of each optimizer's gradients, by its index.
        is_whole: Whether ``losses`` are all terms of the loss of the step.

    Example:
        >>> from lightning_practices.advisor import Look, WeightLook
        >>> weight = WeightLook(gradient=0.1, weight=2.0, update=0.002)
        >>> look = Look(step=10, weights={"layer.weight": weight})
        >>> look.typical_ratio, look.is_finite
        (0.001, True)
    """

    step: int
    weights: dict[str, WeightLook] = field(default_factory=dict)
    activations: list[ActivationLook] = field(default_factory=list)
    losses: list[LossLook] = field(default_factory=list)
    batch: BatchLook | None = None
    norms: dict[int, Norms] = field(default_factory=dict)
    is_whole: bool = False

    def layers(self, optimizer: int) -> list[tuple[str, WeightLook]]:
        """Return an optimizer's weights that multiply, in the order of the forward pass."""
        found = [
            (name, one)
            for name, one in self.weights.items()
            if one.optimizer == optimizer and one.place >= 0 and one.dims > 1 and not one.is_table
        ]
        return sorted(found, key=lambda pair: pair[1].place)

    def branches(self, optimizer: int) -> list[list[tuple[str, WeightLook]]]:
        """Return :meth:`layers` by the branch that they are on: they end at the same layer."""
        found: dict[int, list[tuple[str, WeightLook]]] = {}
        for name, one in self.layers(optimizer):
            found.setdefault(one.end, []).append((name, one))
        return list(found.values())

    @property
    def is_of_data(self) -> bool:
        """Whether the loss is known to be one of targets that come from the batch."""
        return self.is_whole and bool(self.losses) and all(one.is_data for one in self.losses)

    @property
    def is_finite(self) -> bool:
        """Whether the parameters were finite before the step."""
        return all(math.isfinite(one.weight) for one in self.weights.values())

    @property
    def has_gradients(self) -> bool:
        """Whether most of the weights that multiply have a gradient that isn't 0."""
        found = [w.gradient != 0 for w in self.weights.values() if w.dims > 1]
        return 2 * sum(found) > len(found)

    @property
    def typical_ratio(self) -> float:
        """The median of the ratios of update to weight; nan if no step was measured."""
        found = [w.ratio for w in self.weights.values() if w.dims > 1 and w.ratio == w.ratio]
        return statistics.median(found) if found else float("nan")
