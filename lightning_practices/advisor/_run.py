"""What the rules of training look at: a fit up to now."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_START = 5  # losses at the start of a fit
_RECENT = 50  # losses now, at most
_LATE = 4  # looks
_LEAST = 20  # losses, for a trend
_EQUAL = 0.02  # difference of a loss from the whole loss, for the rounding of half precision


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


class NotFinite(NamedTuple):
    """Where the first number that isn't finite was seen.

    Attributes:
        step: Optimizer steps taken before.
        what: ``"batch"``, ``"parameter"``, ``"gradient"``, ``"function"``, or ``""`` if the place
            isn't known.
        name: Name of the part of the batch, of the parameter, or of the function.
        modules: Names of the modules.

    Example:
        >>> from lightning_practices.advisor import NotFinite, Run, training_rules
        >>> run = Run(steps=10, not_finite=NotFinite(10, "parameter", "layer.weight"))
        >>> [rule.practice for rule in training_rules() if rule.findings(run)]
        ['Losses, gradients and weights are finite']
    """

    step: int
    what: str
    name: str = ""
    modules: tuple[str, ...] = ()


class Kept(NamedTuple):
    """An attribute in which outputs of earlier epochs stay.

    Attributes:
        owner: The class of the module or callback that has it.
        name: Its name.
        split: ``"validation"`` or ``"training"``.
        entries: The number of its entries.

    Example:
        >>> from lightning_practices.advisor import Kept, Run, training_rules
        >>> run = Run(kept={Kept("Net", "outputs", "validation", 12): 2})
        >>> [rule.practice for rule in training_rules() if rule.findings(run)]
        ['Outputs of an epoch are cleared before the next one']
    """

    owner: str
    name: str
    split: str
    entries: int


class Check(NamedTuple):
    """A validation.

    Attributes:
        step: Optimizer steps taken.
        loss: The validation loss.
        train: The training loss since the validation before.

    Example:
        >>> from lightning_practices.advisor import Check, Run, training_rules
        >>> losses = (1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of validations
        >>> checks = [Check(100 * i, loss, train=1 / (i + 1)) for i, loss in enumerate(losses)]
        >>> [rule.practice for rule in training_rules() if rule.findings(Run(checks=checks))]
        ['Training ends before the model overfits']
    """

    step: int
    loss: float
    train: float


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


class Trend(NamedTuple):
    """The course of the training loss: at the start, its mean now, and its lowest mean.

    Example:
        >>> from lightning_practices.advisor import Run
        >>> Run(steps=100, losses=[(step, 2.0 if step < 50 else 0.5) for step in range(100)]).trend
        Trend(start=2.0, now=0.5, lowest=0.5)
    """

    start: float
    now: float
    lowest: float


@dataclass(eq=False)
class Run:
    """A fit up to now: what the rules of training look at.

    Attributes:
        steps: Optimizer steps taken.
        looks: The steps that were measured, the last of many.
        losses: Training losses, each with the optimizer steps taken. Empty under manual
            optimization with several losses a batch.
        checks: The validations.
        not_finite: The first number that wasn't finite.
        stale: Indices of the optimizers that added gradients to those of the step before.
        waited: Typical share of the time in which training waits for data; ``None`` if unknown.
        optimizers: The number of optimizers.
        batches: The number of batches of an epoch; ``None`` if unknown.
        is_over: Whether the fit has ended.
        in_eval_mode: The looks in a row in which parts that were in training mode at the start of
            the fit trained in eval mode, by name.
        unowned: The looks in a row in which parameters that were unfrozen during the fit, and that
            no optimizer has, stayed as they were, by name.
        kept: The epochs in a row for which an attribute kept the outputs of the ones before.
        metrics: The logged values by name, each with the optimizer steps taken.

    Example:
        >>> from lightning_practices.advisor import Run
        >>> run = Run(steps=100, losses=[(step, 1 / (1 + step)) for step in range(100)])
        >>> run.falls, run.has_not_fallen
        (True, False)
    """

    steps: int = 0
    looks: Sequence[Look] = ()
    losses: Sequence[tuple[int, float]] = ()
    checks: Sequence[Check] = ()
    not_finite: NotFinite | None = None
    stale: Sequence[int] = ()
    waited: float | None = None
    optimizers: int = 1
    batches: int | None = None
    is_over: bool = False
    in_eval_mode: Mapping[str, int] = field(default_factory=dict)
    unowned: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[Kept, int] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)

    def last_looks(self, number: int, steps: int) -> Sequence[Look]:
        """Return the last looks: at least ``number``, over at least ``steps``; otherwise none."""
        for first in range(len(self.looks) - number, -1, -1):
            if self.looks[-1].step - self.looks[first].step >= steps:
                return self.looks[first:]
        return ()

    @property
    def trend(self) -> Trend | None:
        """The course of the training loss; ``None`` if there are few losses."""
        values = [loss for _, loss in self.losses if loss == loss]
        if len(values) < _LEAST:
            return None
        width = max(_START, min(_RECENT, len(values) // 5))
        parts = [values[i : i + width] for i in range(0, len(values) - width + 1, width)]
        means = [statistics.fmean(part) for part in [*parts, values[-width:]]]
        return Trend(statistics.fmean(values[:_START]), means[-1], min(means))

    @property
    def falls(self) -> bool:
        """Whether the last quarter of the training losses is lower than the quarter before.

        The difference has to be twice its standard error.
        """
        values = [loss for _, loss in self.losses if loss == loss]
        width = len(values) // 4
        if width < 2:
            return False
        before, last = values[-2 * width : -width], values[-width:]
        variance = (statistics.variance(before) + statistics.variance(last)) / width
        return statistics.fmean(before) - statistics.fmean(last) > 2 * math.sqrt(variance)

    @property
    def is_of_data(self) -> bool:
        """Whether the loss is known to be one of data, which falls where training goes well.

        Others may rise, or stay, as their targets move: those of reinforcement learning, of slow
        copies of a network, of losses whose terms are balanced in time.
        """
        looks = self.looks[-_LATE:]
        return bool(looks) and all(look.is_of_data for look in looks)

    @property
    def has_not_fallen(self) -> bool:
        """Whether the training loss is known, and hardly lower now than at the start."""
        trend = self.trend
        return trend is not None and trend.now > trend.start - 0.1 * abs(trend.start)

    @property
    def priors(self) -> Mapping[tuple[str, int], tuple[float, float]]:
        """The mean of each loss, and that of its prior, over the last looks.

        Losses are known by their kind, and their place among those of that kind in a step.
        """
        found: dict[tuple[str, int], list[LossLook]] = {}
        for look in self.looks[-_LATE:]:
            places: Counter[str] = Counter()
            for one in look.losses:
                found.setdefault((one.kind, places[one.kind]), []).append(one)
                places[one.kind] += 1
        return {
            key: (statistics.fmean(x.value for x in same), statistics.fmean(x.prior for x in same))
            for key, same in found.items()
        }

    @property
    def prior(self) -> float | None:
        """The loss of the prior; ``None`` unless the loss is one alone, of data, in its own scale.

        A loss may be scaled, weighted by samples or summed: then its prior's can't be compared
        with it.
        """
        found = [prior for _, prior in self.priors.values()]
        losses = [one for look in self.looks[-_LATE:] for one in look.losses]
        is_same = all(abs(x.total - x.value) <= _EQUAL * abs(x.value) for x in losses)
        known = len(found) == 1 and found[0] > 0 and is_same and self.is_of_data
        return found[0] if known else None

    @property
    def has_learnt(self) -> bool:
        """Whether a loss is at less than half of its prior's."""
        return any(value < 0.5 * prior for value, prior in self.priors.values())

    @property
    def is_no_better(self) -> bool:
        """Whether the losses are of data, and none is better than its prior's."""
        return self.is_of_data and all(value > 0.95 * p for value, p in self.priors.values())

    def ratios(self, name: str, looks: Sequence[Look]) -> Iterator[float]:
        """Yield a parameter's ratios of update to weight that were measured."""
        for look in looks:
            if name in look.weights and look.weights[name].ratio == look.weights[name].ratio:
                yield look.weights[name].ratio
