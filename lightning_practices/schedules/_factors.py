r"""Learning rates that change in the course of training.

Each schedule is a function :math:`f(t)` of the optimizer steps :math:`t` taken so far. The rate of
a group is :math:`\eta(t) = \eta_0 f(t)`, where :math:`\eta_0` is the group's own rate. Give this
function to torch's ``LambdaLR``: its rates depend on the step alone, so all groups keep their
ratios, and a resumed run has the rates of an uninterrupted one. Torch's specialised schedulers
compute the same rates within one run, but have these drawbacks:

- ``CosineAnnealingLR(T_max=steps)`` reaches its least rate only after the last step, and its rate
  rises after that. ``eta_min`` is one rate for all groups. A resumed scheduler keeps the old
  ``T_max``.
- ``OneCycleLR`` raises an error beyond its ``total_steps``, and a resumed scheduler keeps the old
  ``total_steps``. With three steps or fewer it starts near its highest rate.
- ``SequentialLR`` takes no ``ReduceLROnPlateau``. Before a ``OneCycleLR`` it warms up to 1/25 of
  the rate and leaves out the cycle's rise. ``ChainedScheduler`` anneals during the warmup.
"""

import math
from collections.abc import Callable
from typing import Literal

from lightning_practices._arguments import (
    check_callable,
    check_choice,
    check_number,
    check_whole,
)

Factor = Callable[[int], float]
"""The share of the full learning rate, by the number of optimizer steps taken so far."""

FactorName = Literal["power", "exponential", "step", "cosine", "one_cycle"]
"""A schedule that depends on the step alone."""

_RISE = 0.3  # share of one_cycle's steps in which the rate rises
_START = 1 / 25  # first factor of one_cycle


def power_decay(steps: int, exponent: float = 1.0) -> Factor:
    r"""Return :math:`f(t) = 1 / (1 + t/s)^c`, which falls ever more slowly.

    For :math:`c = 1` it is 1/2 after ``steps`` steps, 1/3 after twice and 1/4 after three times as
    many.

    Source: "Power scheduling", lecture S2.

    Args:
        steps: Optimizer steps :math:`s` until the rate is :math:`1/2^c` of the full rate.
        exponent: Exponent :math:`c`.

    Raises:
        ValueError: If ``steps`` isn't an integer from 1 on, or ``exponent`` isn't positive.

    Example:
        >>> from lightning_practices.schedules import power_decay
        >>> factor = power_decay(10)
        >>> [round(factor(t), 2) for t in (0, 10, 20, 30)]
        [1.0, 0.5, 0.33, 0.25]
    """
    steps = check_whole("steps", steps, 1)
    exponent = check_number("exponent", exponent, gt=0)
    return lambda t: (1 + t / steps) ** -exponent


def exponential_decay(steps: int) -> Factor:
    r"""Return :math:`f(t) = 0.1^{t/s}`: a tenth after each ``steps`` steps.

    Source: "Exponential scheduling", lecture S2.

    Args:
        steps: Optimizer steps :math:`s` in which the rate falls to a tenth.

    Raises:
        ValueError: If ``steps`` isn't an integer from 1 on.

    Example:
        >>> from lightning_practices.schedules import exponential_decay
        >>> factor = exponential_decay(10)
        >>> [round(factor(t), 4) for t in (0, 5, 10, 20)]
        [1.0, 0.3162, 0.1, 0.01]
    """
    steps = check_whole("steps", steps, 1)
    return lambda t: 0.1 ** (t / steps)


def step_decay(steps: int, divisor: float = 10.0) -> Factor:
    r"""Return :math:`f(t) = \lambda^{-\lfloor t/s \rfloor}`: a division after each ``steps`` steps.

    Source: "Step reduction", lectures S0 and S3.

    Args:
        steps: Optimizer steps :math:`s` between two divisions of the rate.
        divisor: Number :math:`\lambda` that the rate is divided by.

    Raises:
        ValueError: If ``steps`` isn't an integer from 1 on, or ``divisor`` isn't above 1.

    Example:
        >>> from lightning_practices.schedules import step_decay
        >>> factor = step_decay(10)
        >>> [round(factor(t), 4) for t in (0, 9, 10, 20)]
        [1.0, 1.0, 0.1, 0.01]
    """
    steps = check_whole("steps", steps, 1)
    divisor = check_number("divisor", divisor, gt=1)
    return lambda t: divisor ** -(t // steps)


def cosine_decay(steps: int, floor: float = 0.0) -> Factor:
    r"""Return half a period of a cosine, from 1 at the first of ``steps`` to ``floor`` at the last.

    With :math:`p = \min(t / (steps - 1), 1)` it is
    :math:`f(t) = floor + (1 - floor) (1 + \cos \pi p) / 2`.

    Source: Loshchilov and Hutter, 2017, *SGDR*, arXiv:1608.03983, equation 5, without restarts.

    Args:
        steps: Optimizer steps of the fit.
        floor: Share of the full rate at the last step, from 0 to 1.

    Raises:
        ValueError: If ``steps`` isn't an integer from 1 on, or ``floor`` isn't from 0 to 1.

    Example:
        >>> from lightning_practices.schedules import cosine_decay
        >>> factor = cosine_decay(5, floor=0.1)
        >>> [round(factor(t), 2) for t in range(5)]
        [1.0, 0.87, 0.55, 0.23, 0.1]
    """
    steps = check_whole("steps", steps, 1)
    floor = check_number("floor", floor, ge=0, le=1)
    return lambda t: _anneal(1.0, floor, t / max(steps - 1, 1))


def cosine_restarts(steps: int, cycles: int) -> Factor:
    r"""Return half a period of a cosine that starts anew ``cycles`` times in ``steps``.

    Cycle :math:`k` of :math:`M` begins at step :math:`b_k = \lfloor k s / M \rfloor`. Within it,
    :math:`f(t) = (1 + \cos(\pi (t - b_k) / (b_{k+1} - b_k))) / 2`: 1 at the cycle's first step, and
    near 0 at its last. Cycles continue after ``steps``. Where :math:`M` doesn't divide :math:`s`,
    cycles of :math:`\lceil s / M \rceil` steps as in the source would cut the last cycle short;
    here the lengths of the cycles differ by one step at most.

    Source: Huang et al., 2017, *Snapshot Ensembles*, arXiv:1704.00109, equation 2.

    Args:
        steps: Optimizer steps :math:`s` of all cycles together.
        cycles: Number :math:`M` of cycles, from 1 to ``steps``.

    Raises:
        ValueError: If ``steps`` isn't an integer from 1 on, or ``cycles`` isn't one from 1 to
            ``steps``.

    Example:
        >>> from lightning_practices.schedules import cosine_restarts
        >>> factor = cosine_restarts(8, cycles=2)
        >>> [round(factor(t), 2) for t in range(8)]
        [1.0, 0.85, 0.5, 0.15, 1.0, 0.85, 0.5, 0.15]
    """
    steps = check_whole("steps", steps, 1)
    cycles = check_whole("cycles", cycles, 1)
    if cycles > steps:
        raise ValueError(f"each cycle takes a step at least, but got {cycles} in {steps} steps")

    def factor(t: int) -> float:
        cycle = cycle_of(t, steps, cycles)
        start, end = cycle * steps // cycles, (cycle + 1) * steps // cycles
        return _anneal(1.0, 0.0, (t - start) / (end - start))

    return factor


def cycle_of(t: int, steps: int, cycles: int) -> int:
    """Return the index of the cycle of :func:`cosine_restarts` to which step ``t`` belongs.

    Args:
        t: Optimizer steps taken.
        steps: Optimizer steps of all cycles together.
        cycles: Number of cycles in ``steps``.

    Raises:
        ValueError: If ``t`` isn't an integer from 0 on, or another argument not one from 1 on.

    Example:
        >>> from lightning_practices.schedules import cycle_of
        >>> [cycle_of(t, steps=7, cycles=2) for t in range(7)]
        [0, 0, 0, 1, 1, 1, 1]
    """
    t, steps = check_whole("t", t, 0), check_whole("steps", steps, 1)
    cycles = check_whole("cycles", cycles, 1)
    return ((t + 1) * cycles - 1) // steps


def one_cycle(steps: int, floor: float = 0.0) -> Factor:
    r"""Return a rise from 1/25 to 1 in 30% of the steps, and a fall to ``floor`` at the last one.

    The rise and the fall are half periods of a cosine, as in torch's ``OneCycleLR``, but the
    highest rate is always reached, and lasts for one step. Momentum is not changed.

    Source: Smith and Topin, 2018, *Super-Convergence*, arXiv:1708.07120; HML, chapter 11.

    Args:
        steps: Optimizer steps of the fit.
        floor: Share of the full rate at the last step, from 0 to 1. ``OneCycleLR`` ends at 4e-6.

    Raises:
        ValueError: If ``steps`` isn't an integer from 1 on, or ``floor`` isn't from 0 to 1.

    Example:
        >>> from lightning_practices.schedules import one_cycle
        >>> factor = one_cycle(11)
        >>> [round(factor(t), 2) for t in range(11)]
        [0.04, 0.52, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04, 0.0]
    """
    steps = check_whole("steps", steps, 1)
    floor = check_number("floor", floor, ge=0, le=1)
    peak = max(round(_RISE * steps) - 1, 0)
    fall = max(steps - 1 - peak, 1)

    def factor(t: int) -> float:
        if t < peak:
            return _anneal(_START, 1.0, t / peak)
        return _anneal(1.0, floor, (t - peak) / fall)

    return factor


def warmed_up(factor: Factor, steps: int) -> Factor:
    r"""Return ``factor`` delayed by ``steps``, after a linear rise to its first value.

    During the warmup the factor is :math:`(t + 1) / (steps + 1)` of ``factor(0)``. So no step has a
    rate of 0, and the full rate is reached after exactly ``steps`` steps.

    Source: Goyal et al., 2017, *Accurate, Large Minibatch SGD*, arXiv:1706.02677, section 2.2.

    Args:
        factor: The schedule that follows the warmup.
        steps: Optimizer steps of the warmup; 0 for no warmup.

    Raises:
        ValueError: If ``steps`` isn't an integer from 0 on.

    Example:
        >>> from lightning_practices.schedules import cosine_decay, warmed_up
        >>> factor = warmed_up(cosine_decay(4), steps=3)
        >>> [round(factor(t), 2) for t in range(7)]
        [0.25, 0.5, 0.75, 1.0, 0.75, 0.25, 0.0]
    """
    check_callable("factor", factor, "a function of the step, such as cosine_decay(1000)")
    steps = check_whole("steps", steps, 0)
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
    """Return the schedule of a given name, for torch's ``LambdaLR``.

    Args:
        schedule: ``"power"`` for :func:`power_decay`, ``"exponential"`` for
            :func:`exponential_decay`, ``"step"`` for :func:`step_decay`, ``"cosine"`` for
            :func:`cosine_decay`, or ``"one_cycle"`` for :func:`one_cycle`.
        steps: For ``"power"``, ``"exponential"`` and ``"step"``, the optimizer steps after which
            the rate is divided, counted from the end of the warmup. For ``"cosine"`` and
            ``"one_cycle"``, all optimizer steps of the fit, including the warmup.
        warmup_steps: Optimizer steps of the warmup, see :func:`warmed_up`.
        floor: Share of the full rate at the last step, for ``"cosine"`` and ``"one_cycle"``.
        exponent: Exponent of ``"power"``.
        divisor: Number that ``"step"`` divides the rate by.

    Raises:
        ValueError: If ``schedule`` is an unknown name, or an argument is out of its range.

    Example:
        >>> from torch.optim.lr_scheduler import LambdaLR
        >>> from lightning_practices.schedules import learning_rate_factor
        >>> optimizer = torch.optim.SGD(nn.Linear(4, 2).parameters(), lr=1.0)
        >>> scheduler = LambdaLR(optimizer, learning_rate_factor("cosine", 6, warmup_steps=2))
        >>> for step in range(6):
        ...     print(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()  # after the backward pass of a batch
        ...     scheduler.step()
        0.33
        0.67
        1.0
        0.75
        0.25
        0.0
    """
    warmup_steps = check_whole("warmup_steps", warmup_steps, 0)
    steps = check_whole("steps", steps, 1)
    floor = check_number("floor", floor, ge=0, le=1)
    exponent = check_number("exponent", exponent, gt=0)
    divisor = check_number("divisor", divisor, gt=1)
    left = max(steps - warmup_steps, 1)
    make: dict[str, Callable[[], Factor]] = {
        "power": lambda: power_decay(steps, exponent),
        "exponential": lambda: exponential_decay(steps),
        "step": lambda: step_decay(steps, divisor),
        "cosine": lambda: cosine_decay(left, floor),
        "one_cycle": lambda: one_cycle(left, floor),
    }
    return warmed_up(make[check_choice("schedule", schedule, make)](), warmup_steps)


def _anneal(start: float, end: float, progress: float) -> float:
    """Return half a period of a cosine: ``start`` at progress 0, ``end`` from progress 1 on."""
    share = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return start * share + end * (1 - share)
