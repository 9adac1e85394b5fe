r"""Learning rates that change in the course of training.

Each schedule is a function :math:`f(t)` of the optimizer steps :math:`t` taken so far. The rate of
a group is :math:`\eta(t) = \eta_0 f(t)`, where :math:`\eta_0` is the group's own rate. This is the
function that torch's ``LambdaLR`` takes, and ``LambdaLR`` is the scheduler to use: its rates depend
on the step alone, so all groups keep their ratios, and a resumed run has the same rates as one that
was never stopped. Torch's other schedulers compute the same rates within a run, but

- ``CosineAnnealingLR(T_max=steps)`` has its least rate after the last step, and rises from there;
  ``eta_min`` is one rate for all groups; and a resumed run has the old ``T_max``.
- ``OneCycleLR`` raises an error beyond its ``total_steps``, the old ones after resuming, and starts
  near its highest rate if there are three steps or fewer.
- ``SequentialLR`` takes no ``ReduceLROnPlateau``, and before a ``OneCycleLR`` it warms up to 1/25
  of the rate and leaves out the cycle's rise; ``ChainedScheduler`` anneals during the warmup.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

Factor = Callable[[int], float]
"""The share of the full learning rate, by the number of optimizer steps taken so far."""

FactorName = Literal["power", "exponential", "step", "cosine", "one_cycle"]
"""A schedule that depends on the step alone."""

LearningRateScheduleName = Literal["power", "exponential", "step", "cosine", "one_cycle", "plateau"]
"""A schedule of :class:`LearningRateSchedule`."""

_RISE = 0.3  # share of one cycle
_START = 1 / 25  # of its highest rate


def power_decay(steps: int, exponent: float = 1.0) -> Factor:
    r"""Return :math:`f(t) = 1 / (1 + t/s)^c`: ever slower, 1/2, 1/3, 1/4 after each ``steps``.

    Source: "Power scheduling", lecture S2.

    Args:
        steps: :math:`s`.
        exponent: :math:`c`.

    Raises:
        ValueError: If ``steps`` isn't a whole number from 1 on, or ``exponent`` isn't positive.
    """
    _check_whole("steps", steps, 1)
    if not 0 < exponent < math.inf:
        raise ValueError(f"exponent has to be positive, but got {exponent!r}")
    return lambda t: (1 + t / steps) ** -exponent


def exponential_decay(steps: int) -> Factor:
    r"""Return :math:`f(t) = 0.1^{t/s}`: a tenth after each ``steps``.

    Source: "Exponential scheduling", lecture S2.

    Args:
        steps: :math:`s`.

    Raises:
        ValueError: If ``steps`` isn't a whole number from 1 on.
    """
    _check_whole("steps", steps, 1)
    return lambda t: 0.1 ** (t / steps)


def step_decay(steps: int, divisor: float = 10.0) -> Factor:
    r"""Return :math:`f(t) = \lambda^{-\lfloor t/s \rfloor}`: divided at once after each ``steps``.

    Source: "Step reduction", lectures S0 and S3.

    Args:
        steps: :math:`s`.
        divisor: :math:`\lambda`.

    Raises:
        ValueError: If ``steps`` isn't a whole number from 1 on, or ``divisor`` not above 1.
    """
    _check_whole("steps", steps, 1)
    _check_divisor(divisor)
    return lambda t: divisor ** -(t // steps)


def cosine_decay(steps: int, floor: float = 0.0) -> Factor:
    r"""Return half a period of a cosine, from 1 at the first of ``steps`` to ``floor`` at the last.

    With :math:`p = \min(t / (steps - 1), 1)` it is
    :math:`f(t) = floor + (1 - floor) (1 + \cos \pi p) / 2`.

    Source: Loshchilov and Hutter, 2017, *SGDR*, arXiv:1608.03983, equation 5, without restarts.

    Args:
        steps: All steps of the fit.
        floor: Share of the rate at the end, from 0 to 1.

    Raises:
        ValueError: If ``steps`` isn't a whole number from 1 on, or ``floor`` no such share.
    """
    _check_whole("steps", steps, 1)
    _check_floor(floor)
    return lambda t: _anneal(1.0, floor, t / max(steps - 1, 1))


def cosine_restarts(steps: int, cycles: int) -> Factor:
    r"""Return half a period of a cosine that starts anew ``cycles`` times in ``steps``.

    With :math:`b_k = \lfloor k s / M \rfloor`, where cycle :math:`k` of :math:`M` begins, it is
    :math:`f(t) = (1 + \cos(\pi (t - b_k) / (b_{k+1} - b_k))) / 2`: 1 at each first step, and near
    0 at the last one. After ``steps`` such cycles go on. Where :math:`M` doesn't divide
    :math:`s`, the source's :math:`\lceil s / M \rceil` steps for each would cut the last one
    short; here lengths differ by one at most.

    Source: Huang et al., 2017, *Snapshot Ensembles*, arXiv:1704.00109, equation 2.

    Args:
        steps: Of all cycles.
        cycles: How many, from 1 to ``steps``.

    Raises:
        ValueError: If an argument is none of the above.
    """
    _check_whole("steps", steps, 1)
    _check_whole("cycles", cycles, 1)
    if cycles > steps:
        raise ValueError(f"each cycle takes a step at least, but got {cycles} in {steps} steps")

    def factor(t: int) -> float:
        cycle = cycle_of(t, steps, cycles)
        start, end = cycle * steps // cycles, (cycle + 1) * steps // cycles
        return _anneal(1.0, 0.0, (t - start) / (end - start))

    return factor


def cycle_of(t: int, steps: int, cycles: int) -> int:
    """Return which of :func:`cosine_restarts`' cycles step ``t`` is in, so how many have ended."""
    return ((t + 1) * cycles - 1) // steps


def one_cycle(steps: int, floor: float = 0.0) -> Factor:
    r"""Return a rise from 1/25 to 1 in 30% of the steps, and a fall to ``floor`` at the last one.

    Both are half periods of a cosine, as of torch's ``OneCycleLR``; but the highest rate is always
    reached, and lasts for one step. Momentum stays as it is.

    Source: Smith and Topin, 2018, *Super-Convergence*, arXiv:1708.07120; HML, chapter 11.

    Args:
        steps: All steps of the fit.
        floor: Share of the rate at the end, from 0 to 1. ``OneCycleLR`` leaves 4e-6.

    Raises:
        ValueError: If ``steps`` isn't a whole number from 1 on, or ``floor`` no such share.
    """
    _check_whole("steps", steps, 1)
    _check_floor(floor)
    peak = max(round(_RISE * steps) - 1, 0)
    fall = max(steps - 1 - peak, 1)

    def factor(t: int) -> float:
        if t < peak:
            return _anneal(_START, 1.0, t / peak)
        return _anneal(1.0, floor, (t - peak) / fall)

    return factor


def warmed_up(factor: Factor, steps: int) -> Factor:
    r"""Return ``factor``, but ``steps`` later, after a straight rise to where it starts.

    :math:`(t + 1) / (steps + 1)` of ``factor(0)``: no step is lost to a rate of 0, and the first at
    the full rate comes after exactly ``steps`` others.

    Source: Goyal et al., 2017, *Accurate, Large Minibatch SGD*, arXiv:1706.02677, section 2.2.

    Args:
        factor: What follows.
        steps: Steps of the warmup; 0 for none.

    Raises:
        ValueError: If ``steps`` isn't a whole number from 0 on.
    """
    _check_whole("warmup_steps", steps, 0)
    return lambda t: factor(0) * (t + 1) / (steps + 1) if t < steps else factor(t - steps)


def learning_rate_factor(
    schedule: FactorName,
    steps: int,
    *,
    warmup_steps: int = 0,
    floor: float = 0.0,
    exponent: float = 1.0,
    divisor: float = 10.0,
) -> Factor:
    """Return a schedule by its name, for torch's ``LambdaLR``.

    ::

        scheduler = LambdaLR(optimizer, learning_rate_factor("cosine", 1000, warmup_steps=100))
        for batch in batches:
            ...
            optimizer.step()
            scheduler.step()

    Args:
        schedule: ``"power"``, ``"exponential"``, ``"step"``: :func:`power_decay` and so on;
            ``"cosine"``: :func:`cosine_decay`; ``"one_cycle"``: :func:`one_cycle`.
        steps: For the first three, after how many steps the rate is divided. For the others, all
            steps of the fit, with those of the warmup.
        warmup_steps: See :func:`warmed_up`.
        floor: See :func:`cosine_decay` and :func:`one_cycle`.
        exponent: See :func:`power_decay`.
        divisor: See :func:`step_decay`.

    Raises:
        ValueError: If there is no such schedule, or one of its arguments is out of its range.
    """
    _check_whole("warmup_steps", warmup_steps, 0)
    _check_whole("steps", steps, 1)
    left = max(steps - warmup_steps, 1)
    make: dict[str, Callable[[], Factor]] = {
        "power": lambda: power_decay(steps, exponent),
        "exponential": lambda: exponential_decay(steps),
        "step": lambda: step_decay(steps, divisor),
        "cosine": lambda: cosine_decay(left, floor),
        "one_cycle": lambda: one_cycle(left, floor),
    }
    _check_name(schedule, make)
    return warmed_up(make[schedule](), warmup_steps)


def linear_warmup(optimizer: Optimizer, steps: int) -> LinearLR:
    """Return torch's scheduler for the rates of :func:`warmed_up`, before :func:`plateau`.

    It multiplies the rates, and only until ``steps``, so that rates which the plateau has divided
    stay divided. ``LambdaLR`` would set them anew at each step. Step it after each step of the
    optimizer.

    Args:
        optimizer: The optimizer whose rates are warmed up, all groups alike.
        steps: Steps of the warmup; 0 for none.

    Raises:
        ValueError: If ``steps`` isn't a whole number from 0 on.
    """
    _check_whole("warmup_steps", steps, 0)
    return LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps)


def plateau(
    optimizer: Optimizer,
    *,
    mode: Literal["min", "max"] = "min",
    divisor: float = 10.0,
    patience: int = 3,
    floor: float = 0.0,
) -> ReduceLROnPlateau:
    """Return torch's scheduler that divides the rates when a metric has stopped improving.

    Call its ``step(metric)`` whenever the metric has been computed and the warmup is over. It
    differs from torch's defaults:

    - Any improvement counts. Torch asks for one by a share of the best value, and so takes a slowly
      worsening negative metric for an improving one.
    - Rates below 1e-8 are divided too.
    - ``floor`` is a share of each group's own rate, so the groups keep their ratios.
    - ``patience`` is 3 and not 10, so that early stopping can be more patient than the schedule.

    Source: "Performance scheduling", lectures S0 and S2.

    Args:
        optimizer: The optimizer whose rates are divided, all groups alike.
        mode: Whether the metric is to fall, ``"min"``, or to rise, ``"max"``.
        divisor: Number that the rates are divided by.
        patience: How many metrics in a row may show no improvement; the next one divides.
        floor: Least share that is left of the rates, from 0 to 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_plateau(mode, divisor, patience, floor)
    groups = optimizer.param_groups
    return ReduceLROnPlateau(
        optimizer,
        mode=mode,
        factor=1 / divisor,
        patience=patience,
        threshold=0.0,
        min_lr=[floor * float(group.get("initial_lr", group["lr"])) for group in groups],
        eps=0.0,
    )


class LearningRateSchedule:
    """A schedule by name with its arguments, for any optimizer.

    ::

        schedule = LearningRateSchedule("cosine", warmup_steps=100)
        (scheduler,) = schedule.schedulers(optimizer, steps=1000)
        for batch in batches:
            ...
            optimizer.step()
            scheduler.step()

    Args:
        name: ``"power"``, ``"exponential"``, ``"step"``, ``"cosine"`` or ``"one_cycle"``, see
            :func:`learning_rate_factor`; or ``"plateau"``, see :func:`plateau`.
        warmup_steps: Optimizer steps before the first at the full rate, see :func:`warmed_up`.
        steps: For the first three, after how many steps behind the warmup the rate is divided. For
            the cosine and the cycle, all steps; by default those of the fit.
        floor: Least share of the rate, for the cosine, the cycle and the plateau.
        exponent: Exponent of ``"power"``.
        divisor: Number that ``"step"`` and ``"plateau"`` divide the rate by.
        patience: For ``"plateau"``, how many values in a row may show no improvement.

    Raises:
        ValueError: If there is no such schedule, ``steps`` is missing, or an argument is out of
            range.
    """

    def __init__(
        self,
        name: LearningRateScheduleName = "cosine",
        *,
        warmup_steps: int = 0,
        steps: int | None = None,
        floor: float = 0.0,
        exponent: float = 1.0,
        divisor: float = 10.0,
        patience: int = 3,
    ) -> None:
        _check_name(name, get_args(LearningRateScheduleName))
        self.name: LearningRateScheduleName = name
        self.warmup_steps = warmup_steps
        self.steps = steps
        self.floor = floor
        self.exponent = exponent
        self.divisor = divisor
        self.patience = patience
        if name == "plateau":
            _check_plateau("min", divisor, patience, floor)
            _check_whole("warmup_steps", warmup_steps, 0)
            return
        if name in ("power", "exponential", "step") and steps is None:
            raise ValueError(
                f"{name!r} needs steps, the number of optimizer steps after which it divides the"
                " rate"
            )
        self.factor(1 if steps is None else steps)

    def factor(self, steps: int | None = None) -> Factor:
        """Return the schedule as a function of the optimizer steps taken so far.

        Args:
            steps: All steps of the fit, for the schedules that end with it; unless ``steps`` was
                given to the constructor.

        Raises:
            ValueError: If it is ``"plateau"``, which depends on a metric, or ``steps`` is missing.
        """
        steps = steps if self.steps is None else self.steps
        if self.name == "plateau" or steps is None:
            missing = "a metric" if self.name == "plateau" else "the number of steps"
            raise ValueError(f"{self.name!r} depends on {missing}, which factor() doesn't have")
        return learning_rate_factor(
            self.name,
            steps,
            warmup_steps=self.warmup_steps,
            floor=self.floor,
            exponent=self.exponent,
            divisor=self.divisor,
        )

    def schedulers(
        self,
        optimizer: Optimizer,
        steps: int | None = None,
        *,
        mode: Literal["min", "max"] = "min",
        done: int = 0,
    ) -> list[LambdaLR | LinearLR | ReduceLROnPlateau]:
        """Return torch's schedulers of an optimizer.

        Args:
            optimizer: The optimizer whose rates follow the schedule.
            steps: See :meth:`factor`.
            mode: For ``"plateau"``, whether its metric is to fall, ``"min"``, or to rise,
                ``"max"``.
            done: Steps of the schedule that an earlier fit has taken.

        Returns:
            One ``LambdaLR``, to be stepped after each step of the optimizer; for ``"plateau"`` a
            ``LinearLR`` for the warmup, to be stepped likewise, and a ``ReduceLROnPlateau``, to be
            stepped by the metric once the warmup is over.

        Raises:
            ValueError: If ``steps`` is missing, or ``mode`` is neither.
        """
        if self.name == "plateau":
            divided = plateau(
                optimizer,
                mode=mode,
                divisor=self.divisor,
                patience=self.patience,
                floor=self.floor,
            )
            return [linear_warmup(optimizer, self.warmup_steps), divided]
        factor = self.factor(steps)
        if done:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        return [LambdaLR(optimizer, factor, last_epoch=done - 1)]


def _check_plateau(mode: str, divisor: float, patience: int, floor: float) -> None:
    if mode not in ("min", "max"):
        raise ValueError(f"mode has to be 'min' or 'max', but got {mode!r}")
    _check_whole("patience", patience, 0)
    _check_divisor(divisor)
    _check_floor(floor)


def _check_name(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"schedule has to be one of {', '.join(known)}, but got {name!r}")


def _anneal(start: float, end: float, progress: float) -> float:
    """Return half a period of a cosine from ``start`` to ``end``, both exact; the end stays."""
    share = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return start * share + end * (1 - share)


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} has to be a whole number from {least} on, but got {value!r}")


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise ValueError(f"floor has to be a share from 0 to 1, but got {floor!r}")


def _check_divisor(divisor: float) -> None:
    if not 1 < divisor < math.inf:
        raise ValueError(f"divisor has to be above 1, but got {divisor!r}")
