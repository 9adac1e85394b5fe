"""A learning-rate schedule as a part of the module."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._trainer.horizon import steps_of_fit, why_unknown
from lightning_practices.callbacks._trainer.ranks import mean_over_ranks
from lightning_practices.schedules import learning_rate_factor, linear_warmup, performance
from lightning_practices.schedules._learning_rate import (
    Factor,
    LearningRateSchedule,
    check_performance,
)

_NEVER = sys.maxsize
_Scheduler = TypeVar("_Scheduler", LambdaLR, LinearLR, ReduceLROnPlateau)


class LearningRateScheduleMixin(LightningModule):
    """Let the learning rates follow a schedule in every fit of the module.

    List it before the module whose ``configure_optimizers`` returns the optimizer: ``class
    Net(LearningRateScheduleMixin, BaseNet)``. A ``configure_optimizers`` of the class itself
    returns ``self.schedule_learning_rate(optimizer)`` instead. The rates of the optimizer's groups
    are those of a factor of 1, and keep their ratios.

    The schedules are those of :func:`~lightning_practices.schedules.learning_rate_factor`, and
    :func:`~lightning_practices.schedules.performance`, each after a warmup. They count optimizer
    steps, whatever makes them: accumulated, by ``GradientAccumulationScheduler`` too, or not. The
    cosine and the cycle end with the fit: after ``max_epochs`` or ``max_steps``, whichever comes
    first, the last step has the least rate.

    ``"performance"`` looks at the monitored metric whenever it is computed, and only then: after
    each validation that logs it, or after each epoch if training does; first after the warmup. It
    is averaged over the processes, so that all of them divide at the same step.

    **Resuming** is exact. With other limits of the fit the rates go on along the new curve; with
    other rates in ``configure_optimizers`` the old ones stay, as always in torch. A second fit of
    the same Trainer goes on where the first one ended, except that ``"performance"`` starts anew.

    Args:
        *args: Passed on.
        learning_rate_schedule: ``"power"``, ``"exponential"``, ``"step"``, ``"cosine"``,
            ``"one_cycle"`` or ``"performance"``.
        learning_rate_warmup_steps: Optimizer steps before the first at the full rate.
        learning_rate_steps: Of the first three, after how many steps after the warmup their rates
            are divided. Of the cosine and the cycle, all steps. Default of these: those of the fit.
        learning_rate_floor: Least share of the cosine, the cycle and ``"performance"``.
        learning_rate_exponent: Of ``"power"``.
        learning_rate_divisor: Of ``"step"`` and ``"performance"``.
        learning_rate_monitor: Name of the logged value that ``"performance"`` watches.
        learning_rate_mode: Whether the value is to fall, ``"min"``, or to rise, ``"max"``.
        learning_rate_patience: Values in a row without improvement that are put up with; the next
            one divides. Early stopping needs more patience than that.
        **kwargs: Passed on.

    Raises:
        ValueError: If an argument is none of the above.
        MisconfigurationException: When the fit starts, if there is not one optimizer without a
            scheduler, optimization is manual, the length of the fit isn't known beforehand or
            ``configure_optimizers`` doesn't come here. After the first validation or epoch, if
            ``"performance"`` finds nothing to watch.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reject_twin(cls)

    def __init__(
        self,
        *args: Any,
        learning_rate_schedule: LearningRateSchedule | Literal["performance"] = "cosine",
        learning_rate_warmup_steps: int = 0,
        learning_rate_steps: int | None = None,
        learning_rate_floor: float = 0.0,
        learning_rate_exponent: float = 1.0,
        learning_rate_divisor: float = 10.0,
        learning_rate_monitor: str = "val_loss",
        learning_rate_mode: Literal["min", "max"] = "min",
        learning_rate_patience: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._learning_rate = _Settings(
            learning_rate_schedule,
            learning_rate_warmup_steps,
            learning_rate_steps,
            learning_rate_floor,
            learning_rate_exponent,
            learning_rate_divisor,
            learning_rate_monitor,
            learning_rate_mode,
            learning_rate_patience,
        )
        self._learning_rate_stepping = _Stepping(self._learning_rate)

    def schedule_learning_rate(self, optimizer: OptimizerLRScheduler) -> OptimizerLRScheduler:
        """Add the schedule to an optimizer, for a ``configure_optimizers`` of yours to return.

        Args:
            optimizer: The optimizer, by itself or in a list or dict as Lightning takes it.

        Raises:
            MisconfigurationException: See the class.
        """
        if optimizer is None:  # Lightning trains without, and says so
            self._learning_rate_stepping.is_used = True
            return None
        if not self.automatic_optimization:
            raise MisconfigurationException(
                "LearningRateScheduleMixin: under manual optimization Lightning steps no scheduler;"
                " make one by LambdaLR(optimizer, learning_rate_factor(...)) of torch and"
                " lightning_practices.schedules, and step it after each step of the optimizer"
            )
        found = list(_flatten(optimizer))
        if len(found) != 1 or not isinstance(found[0], Optimizer):
            raise MisconfigurationException(
                "LearningRateScheduleMixin schedules one optimizer, which has no scheduler yet, but"
                f" got {', '.join(type(one).__name__ for one in found)} from configure_optimizers:"
                " return an optimizer alone, or leave out the mixin"
            )
        schedulers: Any = self._learning_rate_stepping.attach(self.trainer, found[0])
        return [found[0]], schedulers  # as dicts, which Lightning takes, and its type leaves out

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.schedule_learning_rate(super().configure_optimizers())

    @override
    def configure_callbacks(self) -> list[Callback]:
        given = super().configure_callbacks()
        others = [given] if isinstance(given, Callback) else given
        return [*others, self._learning_rate_stepping]  # one instance: Lightning asks for each run


@dataclass(frozen=True)
class _Settings:
    """The mixin's arguments."""

    schedule: LearningRateSchedule | Literal["performance"]
    warmup_steps: int
    steps: int | None
    floor: float
    exponent: float
    divisor: float
    monitor: str
    mode: Literal["min", "max"]
    patience: int

    def __post_init__(self) -> None:
        if self.schedule == "performance":
            check_performance(self.mode, self.divisor, self.patience, self.floor)
            self.factor_of("cosine", 1)  # checks the warmup
            return
        if self.schedule in ("power", "exponential", "step") and self.steps is None:
            raise ValueError(
                f"learning_rate_schedule={self.schedule!r} needs learning_rate_steps, the number of"
                " steps after which it divides the rate"
            )
        self.factor_of(self.schedule, 1 if self.steps is None else self.steps)

    def factor_of(self, schedule: LearningRateSchedule, steps: int) -> Factor:
        return learning_rate_factor(
            schedule,
            steps,
            warmup_steps=self.warmup_steps,
            floor=self.floor,
            exponent=self.exponent,
            divisor=self.divisor,
        )


class _Stepping(Callback):
    """Makes the schedulers, and steps that of ``"performance"``; Lightning steps the others.

    A callback, because checkpoints are saved after callbacks and before the module's own hooks.
    """

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self.is_used = False  # in this fit
        self._seen = False  # the metric, in this fit
        self._validated = False  # in this fit

    def attach(self, trainer: Trainer, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Return Lightning's configuration of the schedulers."""
        self.is_used = True
        settings = self._settings
        # Of "step" with a frequency of 1 Lightning counts optimizer steps, of others batches.
        each_step = {"interval": "step", "frequency": 1}
        if settings.schedule != "performance":
            return [{"scheduler": self._by_step(trainer, optimizer), **each_step}]
        warmup = linear_warmup(optimizer, settings.warmup_steps)
        plateau = performance(
            optimizer,
            mode=settings.mode,
            divisor=settings.divisor,
            patience=settings.patience,
            floor=settings.floor,
        )
        # Lightning would step it by metrics of long ago, so it only saves and restores it.
        held = {"interval": "epoch", "frequency": _NEVER, "monitor": settings.monitor}
        return [{"scheduler": warmup, **each_step}, {"scheduler": plateau, **held}]

    def _by_step(self, trainer: Trainer, optimizer: Optimizer) -> LambdaLR:
        settings = self._settings
        assert settings.schedule != "performance"
        steps = settings.steps or steps_of_fit(trainer)
        if steps is None:
            raise MisconfigurationException(
                f"the {settings.schedule} schedule ends with the fit, but how many steps that takes"
                f" isn't known beforehand ({why_unknown(trainer)}): give learning_rate_steps"
            )
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        if settings.warmup_steps >= steps and settings.steps is None and not is_trial:
            rank_zero_warn(
                f"the fit takes {steps} optimizer steps, and the warmup of the learning rate"
                f" {settings.warmup_steps}: the full rate is never reached"
            )
        done = trainer.global_step  # by an earlier fit; what is resumed comes later
        if done:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        factor = settings.factor_of(settings.schedule, max(steps, 1))
        return LambdaLR(optimizer, factor, last_epoch=done - 1)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.is_used = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_used:
            name = type(pl_module).__name__
            raise MisconfigurationException(
                f"configure_optimizers of {name} hides that of LearningRateScheduleMixin, so that"
                " there is no schedule: let it return self.schedule_learning_rate(optimizer)"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = self._validated = False
        if by_step := _scheduler_of(trainer, LambdaLR):
            _renew(by_step)
        if plateau := _scheduler_of(trainer, ReduceLROnPlateau):
            # Restored with the state, but the new ones count.
            plateau.patience = self._settings.patience
            plateau.factor = 1 / self._settings.divisor

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated = True
            self._look(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Step the schedule if the loop that ends here has computed the metric."""
        warmup = _scheduler_of(trainer, LinearLR)
        plateau = _scheduler_of(trainer, ReduceLROnPlateau)
        if warmup is None or plateau is None:  # another schedule, or the Trainer's tuner at work
            return
        # Of this loop alone: `callback_metrics` holds those of long ago too.
        metrics = trainer._logger_connector.metrics["callback"]
        value = metrics.get(self._settings.monitor)
        if value is None:
            self._miss(trainer)
            return
        self._seen = True
        if warmup.last_epoch >= self._settings.warmup_steps:
            plateau.step(mean_over_ranks(trainer, value.squeeze()).item())

    def _miss(self, trainer: Trainer) -> None:
        """Raise if the metric should have been computed by the end of a first epoch."""
        is_over = trainer.training and trainer.is_last_batch
        if is_over and not self._seen and (self._validated or not trainer.enable_validation):
            raise MisconfigurationException(
                f"the performance schedule watches {self._settings.monitor!r}, but neither"
                " validation nor the training steps of a whole epoch (on_epoch=True) have logged"
                f" it; logged are: {', '.join(sorted(trainer.callback_metrics)) or 'none'}"
            )


def _scheduler_of(trainer: Trainer, kind: type[_Scheduler]) -> _Scheduler | None:
    found = (config.scheduler for config in trainer.lr_scheduler_configs)
    return next((scheduler for scheduler in found if isinstance(scheduler, kind)), None)


def _renew(scheduler: LambdaLR) -> None:
    """Set the rates by the present schedule: those of a checkpoint are by that of its fit."""
    rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, (own, factor) in zip(scheduler.optimizer.param_groups, rates, strict=True):
        rate = own * factor(scheduler.last_epoch)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _flatten(given: Any) -> Iterator[Any]:
    """Return all that ``configure_optimizers`` has returned, one by one."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, list | tuple):
        for part in given:
            yield from _flatten(part)
    else:
        yield given
