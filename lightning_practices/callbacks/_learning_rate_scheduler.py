"""Learning rates that follow a schedule, in any Trainer."""

import sys
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._trainer.horizon import steps_of_fit, why_unknown
from lightning_practices.callbacks._trainer.logs import MonitoredValue
from lightning_practices.callbacks._types import Mode
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName

_NEVER = sys.maxsize
_Scheduler = TypeVar("_Scheduler", LambdaLR, LinearLR, ReduceLROnPlateau)


class LearningRateScheduler(Callback):
    """Let the learning rates of the module's optimizer follow a schedule.

    ::

        Trainer(callbacks=[LearningRateScheduler("cosine")])

    ``configure_optimizers`` returns the optimizer alone. The rates of its groups are those at a
    factor of 1, and they keep their ratios.

    Schedules count optimizer steps, however many batches make one, under accumulation and
    ``GradientAccumulationScheduler`` too. The cosine and the cycle end with the fit: after
    ``max_epochs`` or ``max_steps``, whichever comes first, the last step has the least rate.

    ``"plateau"`` judges the monitored value whenever it has been logged, and only then: after each
    validation that logs it, or after each epoch if training does. It begins after the warmup. The
    value is averaged over the ranks, so all of them divide the rate at the same step.

    **Resuming** is exact. With other limits of the fit the rates go on along the new curve. With
    other rates in ``configure_optimizers`` the old ones stay, as always in torch. A second fit of
    the same Trainer goes on where the first one ended, except that ``"plateau"`` begins anew.

    Args:
        schedule: The name of a schedule, or a
            :class:`~lightning_practices.schedules.LearningRateSchedule`, which has the arguments.
        monitor: Name of the logged value that ``"plateau"`` judges.
        mode: Whether that value is to fall, ``"min"``, or to rise, ``"max"``.

    Raises:
        ValueError: If there is no such schedule or ``mode``, or the schedule needs arguments.
        MisconfigurationException: When the fit starts, if there isn't exactly one optimizer without
            a scheduler, optimization is manual, or the length of the fit isn't known beforehand.
            After the first validation or epoch, if ``monitor`` has not been logged.
        TypeError: If the trainer or the module is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        schedule: LearningRateScheduleName | LearningRateSchedule = "cosine",
        monitor: str = "val_loss",
        mode: Mode = "min",
    ) -> None:
        if isinstance(schedule, str):
            schedule = LearningRateSchedule(schedule)
        if mode not in ("min", "max"):
            raise ValueError(f"mode has to be 'min' or 'max', but got {mode!r}")
        self.schedule = schedule
        self.monitor = monitor
        self.mode: Mode = mode
        self._value = self._monitored()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reject_twin(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "LearningRateScheduler: under manual optimization Lightning steps no scheduler;"
                " make one by LearningRateSchedule(...).schedulers(optimizer) of"
                " lightning_practices.schedules, and step it after each step of the optimizer"
            )
        optimizers = [_bare(optimizer) for optimizer in trainer.optimizers]
        if not any("lr" in group for optimizer in optimizers for group in optimizer.param_groups):
            return  # configure_optimizers returned None: Lightning trains without, and says so
        found = [*optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)]
        if len(found) != 1:
            raise MisconfigurationException(
                "LearningRateScheduler schedules one optimizer, which has no scheduler yet, but"
                f" got {', '.join(type(one).__name__ for one in found)} from configure_optimizers:"
                " return an optimizer alone, or leave out the schedule"
            )
        trainer.strategy.lr_scheduler_configs = self._configs(trainer, optimizers[0])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._value = self._monitored()
        if by_step := _scheduler_of(trainer, LambdaLR):
            _renew(by_step)
        if plateau := _scheduler_of(trainer, ReduceLROnPlateau):
            # A checkpoint restores the old values, but the new ones count.
            plateau.patience = self.schedule.patience
            plateau.factor = 1 / self.schedule.divisor

    # In a callback's hooks, because checkpoints are saved before the module's own hooks run.
    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule.name == "plateau":
            self._look(trainer, self._value.at_validation_end(trainer))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule.name == "plateau":
            self._look(trainer, self._value.at_train_epoch_end(trainer))

    def _monitored(self) -> MonitoredValue:
        return MonitoredValue(self.monitor, "the plateau schedule")

    def _configs(self, trainer: Trainer, optimizer: Optimizer) -> list[LRSchedulerConfig]:
        """Return Lightning's configuration of the schedulers."""
        if self.schedule.name == "plateau":
            warmup, plateau = self.schedule.schedulers(optimizer, mode=self.mode)
            # Lightning would step it by values of long ago, so Lightning only saves and restores
            # it.
            held = LRSchedulerConfig(
                plateau, frequency=_NEVER, reduce_on_plateau=True, monitor=self.monitor
            )
            return [LRSchedulerConfig(warmup, interval="step"), held]
        steps = self.schedule.steps or steps_of_fit(trainer)
        if steps is None:
            raise MisconfigurationException(
                f"the {self.schedule.name} schedule ends with the fit, but how many steps that"
                f" takes isn't known beforehand ({why_unknown(trainer)}): give"
                f" LearningRateSchedule({self.schedule.name!r}, steps=...)"
            )
        warmup_steps = self.schedule.warmup_steps
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        if warmup_steps >= steps and self.schedule.steps is None and not is_trial:
            rank_zero_warn(
                f"the fit takes {steps} optimizer steps, and the warmup of the learning rate"
                f" {warmup_steps}: the full rate is never reached"
            )
        # Steps of an earlier fit; those of a checkpoint are restored later.
        done = trainer.global_step
        (scheduler,) = self.schedule.schedulers(optimizer, max(steps, 1), done=done)
        # Lightning counts optimizer steps only at a frequency of 1, and batches at others.
        return [LRSchedulerConfig(scheduler, interval="step")]

    def _look(self, trainer: Trainer, value: float | None) -> None:
        """Step the plateau, if the monitored value has been logged and the warmup is over."""
        warmup = _scheduler_of(trainer, LinearLR)
        plateau = _scheduler_of(trainer, ReduceLROnPlateau)
        if value is None or warmup is None or plateau is None:  # no optimizer has one
            return
        if warmup.last_epoch >= self.schedule.warmup_steps:
            plateau.step(value)


def _bare(optimizer: Any) -> Optimizer:
    """Return torch's optimizer: DeepSpeed's wrapper of it, which shares its groups, isn't one."""
    return optimizer if isinstance(optimizer, Optimizer) else _bare(optimizer.optimizer)


def _scheduler_of(trainer: Trainer, kind: type[_Scheduler]) -> _Scheduler | None:
    found = (config.scheduler for config in trainer.lr_scheduler_configs)
    return next((scheduler for scheduler in found if isinstance(scheduler, kind)), None)


def _renew(scheduler: LambdaLR) -> None:
    """Set the rates by the present schedule: a checkpoint's are by the schedule of its fit."""
    rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, (own, factor) in zip(scheduler.optimizer.param_groups, rates, strict=True):
        rate = own * factor(scheduler.last_epoch)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
