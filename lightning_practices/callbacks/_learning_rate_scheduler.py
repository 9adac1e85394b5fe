"""The callback that lets learning rates follow a schedule."""

import sys
from typing import Any, TypeVar, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau
from typing_extensions import override

from lightning_practices._arguments import check_choice, check_name
from lightning_practices._names import count
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.horizon import (
    FollowedSteps,
    checks_of_fit,
    steps_of_fit,
    warn_if_too_short,
    why_unknown,
)
from lightning_practices.callbacks._trainer.logs import MonitoredValues
from lightning_practices.callbacks._trainer.modes import Watched
from lightning_practices.callbacks._trainer.others import refuse_finetuning_scheduler
from lightning_practices.callbacks._types import Mode
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName

_NEVER = sys.maxsize
_Scheduler = TypeVar("_Scheduler", LambdaLR, LinearLR, ReduceLROnPlateau)


class LearningRateScheduler(PracticeCallback):
    """Let the learning rates of the module's optimizer follow a schedule.

    ``configure_optimizers`` has to return the optimizer alone. The schedule multiplies the
    configured rate of each parameter group by the same factor, so the rates keep their ratios.

    Schedules count optimizer steps rather than batches, also with gradient accumulation and
    ``GradientAccumulationScheduler``. ``"cosine"`` and ``"one_cycle"`` end with the fit: the last
    step, at ``max_epochs`` or ``max_steps``, whichever comes first, has the lowest rate.

    ``"plateau"`` checks the monitored value after each validation that logs it, or after each
    training epoch that logs it. Checks begin after the warmup. The value is averaged over the
    ranks, so all ranks divide the rate at the same step.

    **Epochs of different length**, as with ``reload_dataloaders_every_n_epochs`` and data that
    grow: ``"cosine"`` and ``"one_cycle"`` are functions of the steps taken and of all steps. If an
    epoch has another number of batches than the ones before, all steps are counted anew, as if the
    epochs to come had this number too. The rates go on along the curve of this length, and a
    warning says so once.

    **Resuming** is exact. If the resumed fit has other limits, the rates follow the curve of the
    new length. If ``configure_optimizers`` has other rates, the rates of the checkpoint are used,
    as always in torch. A second fit of the same Trainer continues the schedule of the first fit,
    except that ``"plateau"`` starts anew.

    Args:
        schedule: The name of a schedule, or a
            :class:`~lightning_practices.schedules.LearningRateSchedule` with further arguments.
        monitor: Name of the logged value that ``"plateau"`` monitors.
        mode: Direction in which the value improves: ``"min"`` if lower is better, ``"max"`` if
            higher is better.

    Raises:
        ValueError: If the name of the schedule or the ``mode`` is unknown, or the schedule needs
            arguments.
        MisconfigurationException: When the fit starts, if ``configure_optimizers`` returns more
            than one optimizer or a scheduler, if optimization is manual, or if the schedule needs
            the length of the fit and it isn't known beforehand. After the first validation or
            epoch, if ``monitor`` has not been logged.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import LearningRateScheduler
        >>> class Net(BoringModel):
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        ...     def on_before_optimizer_step(self, optimizer):
        ...         print(round(optimizer.param_groups[0]["lr"], 3))
        >>> cosine = LearningRateScheduler("cosine")
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=4, callbacks=[cosine]).fit(Net())
        0.1
        0.075
        0.025
        0.0
    """

    def __init__(
        self,
        schedule: LearningRateScheduleName | LearningRateSchedule = "cosine",
        monitor: str = "val_loss",
        mode: Mode = "min",
    ) -> None:
        if not isinstance(schedule, LearningRateSchedule):
            names = get_args(LearningRateScheduleName)
            schedule = LearningRateSchedule(check_choice("schedule", schedule, names))
        self.schedule = schedule
        self.monitor = check_name("monitor", monitor)
        self.mode: Mode = check_choice("mode", mode, get_args(Mode))
        self._values = self._monitored()
        self._steps = FollowedSteps("the learning rates follow the new number")

    @override
    def _watched(self) -> list[Watched]:
        return [(self.monitor, self.mode)] if self.schedule.name == "plateau" else []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_finetuning_scheduler(trainer, self, "schedule")
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "LearningRateScheduler: under manual optimization Lightning steps no scheduler;"
                " make one by LearningRateSchedule(...).schedulers(optimizer) of"
                " lightning_practices.schedules, and step it after each step of the optimizer"
            )
        optimizers = [_bare(optimizer) for optimizer in trainer.optimizers]
        if not any("lr" in group for optimizer in optimizers for group in optimizer.param_groups):
            return  # configure_optimizers returned None, and Lightning warns
        found = [*optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)]
        if len(found) != 1:
            raise MisconfigurationException(
                "LearningRateScheduler schedules one optimizer, which has no scheduler yet, but"
                f" got {', '.join(type(one).__name__ for one in found)} from configure_optimizers:"
                " return the optimizer alone, or turn this schedule off, by schedule=None of the"
                " mixin or without the callback. With LightningCLI, --lr_scheduler gives such a"
                " scheduler: leave it out and choose one by --model.schedule=one_cycle, or turn"
                " this schedule off by --model.schedule=null"
            )
        trainer.strategy.lr_scheduler_configs = self._configs(trainer, optimizers[0])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._values = self._monitored()
        steps = self._steps.begin(trainer)
        if by_step := _scheduler_of(trainer, LambdaLR):
            self._renew(by_step)
        self._warn_of_short_fit(trainer, steps)
        if plateau := _scheduler_of(trainer, ReduceLROnPlateau):
            self._values.at_start(trainer)
            # A checkpoint restores the old arguments, but the new arguments count.
            plateau.patience = self.schedule.patience
            plateau.factor = 1 / self.schedule.divisor

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        by_step = _scheduler_of(trainer, LambdaLR)
        if by_step and self._ends_with_fit and self._steps.have_changed(trainer):
            self._renew(by_step)

    # Stepped in these hooks, as Lightning saves checkpoints before the module's own hooks run.
    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule.name == "plateau":
            self._look(trainer, self._values.at_validation_end(trainer))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule.name == "plateau":
            self._look(trainer, self._values.at_train_epoch_end(trainer))

    def _monitored(self) -> MonitoredValues:
        return MonitoredValues([self.monitor], "the plateau schedule")

    def _configs(self, trainer: Trainer, optimizer: Optimizer) -> list[LRSchedulerConfig]:
        """Return Lightning's configuration of the schedulers."""
        if self.schedule.name == "plateau":
            warmup, plateau = self.schedule.schedulers(optimizer, mode=self.mode)
            # Lightning would step the plateau by outdated values. So it never steps it
            # (frequency=_NEVER), and only saves and restores it.
            held = LRSchedulerConfig(
                plateau, frequency=_NEVER, reduce_on_plateau=True, monitor=self.monitor
            )
            return [LRSchedulerConfig(warmup, interval="step"), held]
        steps = self.schedule.steps or steps_of_fit(trainer)
        if steps is None:
            raise MisconfigurationException(
                f"the {self.schedule.name} schedule ends with the fit, but how many steps that"
                f" takes isn't known beforehand ({why_unknown(trainer)}): give"
                f" LearningRateSchedule({self.schedule.name!r}, steps=...), or turn this schedule"
                " off, by schedule=None of the mixin or without the callback"
            )
        # The steps of an earlier fit of this Trainer. Steps of a checkpoint are restored later.
        done = trainer.global_step
        (scheduler,) = self.schedule.schedulers(optimizer, max(steps, 1), done=done)
        # Lightning counts optimizer steps only at a frequency of 1, and batches at other
        # frequencies.
        return [LRSchedulerConfig(scheduler, interval="step")]

    @property
    def _ends_with_fit(self) -> bool:
        return self.schedule.steps is None and self.schedule.name != "plateau"

    def _renew(self, scheduler: LambdaLR) -> None:
        """Let the rates follow the curve of the present number of steps, from now on.

        A checkpoint restores the rates of its own curve.
        """
        if self._ends_with_fit and self._steps.steps is not None:
            factor = self.schedule.factor(max(self._steps.steps, 1))
            scheduler.lr_lambdas = [factor] * len(scheduler.lr_lambdas)
        _set_rates(scheduler)

    def _warn_of_short_fit(self, trainer: Trainer, steps: int | None) -> None:
        """Warn if the fit ends before the schedule has had its effect, or long after it."""
        schedule, unit = self.schedule, "optimizer step"
        warmup = schedule.warmup_steps
        text = f"the warmup of the learning rate takes {warmup}: the full rate is never reached, so"
        warn_if_too_short(trainer, steps, warmup + 1, unit, f"{text} give fewer warmup_steps")
        given = schedule.steps or 0
        ends = schedule.name in ("cosine", "one_cycle") and not schedule.floor
        if ends and given and steps is not None and given < steps:
            rank_zero_warn(
                f"the fit has {count(steps, unit)}, and the {schedule.name} schedule ends after"
                f" {given}: the rate of the steps after them is 0, so leave steps out, or give a"
                " floor"
            )
        if schedule.name == "step" and schedule.steps is not None:
            first = warmup + schedule.steps
            text = f"the step schedule divides the rate after {first}: it never does, so give fewer"
            warn_if_too_short(trainer, steps, first + 1, unit, f"{text} steps")
        if schedule.name == "plateau":
            first = schedule.patience + 2
            text = (
                f"the plateau schedule divides the rate after {first} checks at the earliest: it"
                " never does, so give less patience"
            )
            warn_if_too_short(trainer, checks_of_fit(trainer), first, "check", text)

    def _look(self, trainer: Trainer, values: dict[str, Tensor] | None) -> None:
        """Step the plateau, if the monitored value has been logged and the warmup is over."""
        warmup = _scheduler_of(trainer, LinearLR)
        plateau = _scheduler_of(trainer, ReduceLROnPlateau)
        if values is None or warmup is None or plateau is None:  # the fit has no optimizer
            return
        if warmup.last_epoch >= self.schedule.warmup_steps:
            plateau.step(values[self.monitor].item())


def _bare(optimizer: Any) -> Optimizer:
    """Return a torch optimizer, or the one inside a wrapper such as DeepSpeed's."""
    return optimizer if isinstance(optimizer, Optimizer) else _bare(optimizer.optimizer)


def _scheduler_of(trainer: Trainer, kind: type[_Scheduler]) -> _Scheduler | None:
    found = (config.scheduler for config in trainer.lr_scheduler_configs)
    return next((scheduler for scheduler in found if isinstance(scheduler, kind)), None)


def _set_rates(scheduler: LambdaLR) -> None:
    """Set the rates of the present step."""
    rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, (own, factor) in zip(scheduler.optimizer.param_groups, rates, strict=True):
        rate = own * factor(scheduler.last_epoch)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
