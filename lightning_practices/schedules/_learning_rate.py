"""Learning rate schedules as torch's schedulers, by name."""

from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau
from typing_extensions import override

from lightning_practices._arguments import (
    check_choice,
    check_instance,
    check_number,
    check_whole,
)
from lightning_practices._calls import as_call
from lightning_practices.schedules._factors import Factor, learning_rate_factor

LearningRateScheduleName = Literal["power", "exponential", "step", "cosine", "one_cycle", "plateau"]
"""A schedule of :class:`LearningRateSchedule`."""


def linear_warmup(optimizer: Optimizer, steps: int) -> LinearLR:
    """Return torch's scheduler for the rates of :func:`warmed_up`, for use with :func:`plateau`.

    The scheduler multiplies the current rates and stops after ``steps``, so it keeps the divisions
    that ``plateau`` makes; ``LambdaLR`` would overwrite them at each step. Step it after each step
    of the optimizer.

    Args:
        optimizer: The optimizer whose rates are warmed up, all groups alike.
        steps: Optimizer steps of the warmup; 0 for no warmup.

    Raises:
        ValueError: If ``steps`` isn't an integer from 0 on.

    Example:
        >>> from lightning_practices.schedules import linear_warmup
        >>> optimizer = torch.optim.SGD(nn.Linear(4, 2).parameters(), lr=1.0)
        >>> scheduler = linear_warmup(optimizer, steps=3)
        >>> for step in range(5):
        ...     print(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()  # after the backward pass of a batch
        ...     scheduler.step()
        0.25
        0.5
        0.75
        1.0
        1.0
    """
    check_instance("optimizer", optimizer, Optimizer, "a torch optimizer")
    steps = check_whole("steps", steps, 0)
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

    Call its ``step(metric)`` whenever the metric has been computed and the warmup is over. The
    scheduler differs from torch's defaults:

    - Any improvement counts. Torch requires an improvement by a share of the best value, and
      therefore counts a slowly worsening negative metric as an improving one.
    - Rates below 1e-8 are divided too.
    - ``floor`` is a share of each group's own rate, so the groups keep their ratios.
    - ``patience`` is 3 and not 10, so that early stopping can be more patient than the schedule.

    Source: "Performance scheduling", lectures S0 and S2.

    Args:
        optimizer: The optimizer whose rates are divided, all groups alike.
        mode: Whether the metric is to fall, ``"min"``, or to rise, ``"max"``.
        divisor: Number that the rates are divided by.
        patience: How many values in a row may show no improvement; after one more the rates are
            divided.
        floor: Least share of each group's own rate, from 0 to 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_practices.schedules import plateau
        >>> optimizer = torch.optim.SGD(nn.Linear(4, 2).parameters(), lr=1.0)
        >>> scheduler = plateau(optimizer, patience=2)
        >>> for val_loss in (0.5, 0.4, 0.4, 0.4, 0.4):
        ...     scheduler.step(val_loss)
        ...     print(round(optimizer.param_groups[0]["lr"], 2))
        1.0
        1.0
        1.0
        1.0
        0.1
    """
    check_instance("optimizer", optimizer, Optimizer, "a torch optimizer")
    mode = check_choice("mode", mode, ("min", "max"))
    patience = check_whole("patience", patience, 0)
    divisor = check_number("divisor", divisor, gt=1)
    floor = check_number("floor", floor, ge=0, le=1)
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
    """A named schedule with its arguments, for any optimizer.

    Args:
        name: ``"power"``, ``"exponential"``, ``"step"``, ``"cosine"`` or ``"one_cycle"``, see
            :func:`learning_rate_factor`; or ``"plateau"``, see :func:`plateau`.
        warmup_steps: Optimizer steps of the warmup, before the first step at the full rate, see
            :func:`warmed_up`.
        steps: For ``"power"``, ``"exponential"`` and ``"step"``, the optimizer steps after which
            the rate is divided, counted from the end of the warmup. For ``"cosine"`` and
            ``"one_cycle"``, all optimizer steps, including the warmup. Default for these two: the
            steps of the fit.
        floor: Least share of the full rate, for ``"cosine"``, ``"one_cycle"`` and ``"plateau"``.
        exponent: Exponent of ``"power"``.
        divisor: Number that ``"step"`` and ``"plateau"`` divide the rate by.
        patience: For ``"plateau"``, how many values of the metric in a row may show no improvement.

    Raises:
        ValueError: If ``name`` is unknown, ``steps`` is missing, or an argument is out of its
            range.

    Example:
        >>> from lightning_practices.schedules import LearningRateSchedule
        >>> optimizer = torch.optim.SGD(nn.Linear(4, 2).parameters(), lr=1.0)
        >>> schedule = LearningRateSchedule("cosine", warmup_steps=2)
        >>> (scheduler,) = schedule.schedulers(optimizer, steps=6)
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
        known = get_args(LearningRateScheduleName)
        self.name: LearningRateScheduleName = check_choice("name", name, known)
        self.warmup_steps = check_whole("warmup_steps", warmup_steps, 0)
        self.steps = None if steps is None else check_whole("steps", steps, 1)
        self.floor = check_number("floor", floor, ge=0, le=1)
        self.exponent = check_number("exponent", exponent, gt=0)
        self.divisor = check_number("divisor", divisor, gt=1)
        self.patience = check_whole("patience", patience, 0)
        if name in ("power", "exponential", "step") and steps is None:
            raise ValueError(
                f"{name!r} needs steps, the number of optimizer steps after which it divides the"
                f' rate: give LearningRateSchedule("{name}", steps=...)'
            )

    @override
    def __repr__(self) -> str:
        return as_call(self)

    def factor(self, steps: int | None = None) -> Factor:
        """Return the schedule as a function of the optimizer steps taken so far.

        Args:
            steps: All optimizer steps of the fit, for ``"cosine"`` and ``"one_cycle"``. The
                constructor's ``steps``, if given, override them.

        Raises:
            ValueError: If the schedule is ``"plateau"``, which depends on a metric, or ``steps`` is
                missing.
        """
        if steps is not None:
            steps = check_whole("steps", steps, 1)
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
        """Return torch's schedulers that apply this schedule to an optimizer.

        Args:
            optimizer: The optimizer whose rates follow the schedule.
            steps: All optimizer steps of the fit, see :meth:`factor`.
            mode: For ``"plateau"``, whether its metric is to fall, ``"min"``, or to rise,
                ``"max"``.
            done: Optimizer steps of the schedule that an earlier fit has taken.

        Returns:
            A list of one ``LambdaLR``, to be stepped after each step of the optimizer. For
            ``"plateau"``, a list of two: a ``LinearLR`` for the warmup, to be stepped after each
            step of the optimizer, and a ``ReduceLROnPlateau``, to be stepped with the metric once
            the warmup is over.

        Raises:
            ValueError: If ``steps`` is missing, or ``mode`` is neither ``"min"`` nor ``"max"``.
        """
        check_instance("optimizer", optimizer, Optimizer, "a torch optimizer")
        mode, done = check_choice("mode", mode, ("min", "max")), check_whole("done", done, 0)
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
