"""What the rules of training look at: a fit up to now."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_practices.advisor._looks import Look, LossLook

_START = 5  # losses at the start of a fit
_RECENT = 50  # losses now, at most
_LATE = 4  # looks
_LEAST = 20  # losses, for a trend
_EQUAL = 0.02  # difference of a loss from the whole loss, for the rounding of half precision


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
