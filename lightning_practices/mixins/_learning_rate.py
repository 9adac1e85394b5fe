"""The mixin that schedules the learning rate."""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_practices.callbacks import LearningRateScheduler, SnapshotEnsemble
from lightning_practices.mixins._practice import MonitorMixin, check_constructed, configured
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName

_SCHEDULE: LearningRateScheduleName = "cosine"


class LearningRateScheduleMixin(MonitorMixin):
    """Add :class:`~lightning_practices.callbacks.LearningRateScheduler` to every fit.

    List the mixin before the class that it extends: ``class Net(LearningRateScheduleMixin,
    BaseNet)``. The ``configure_optimizers`` of ``Net`` returns the optimizer alone. If ``Net`` has
    its own ``configure_callbacks``, extend the list that ``super().configure_callbacks()`` returns.

    If the Trainer has a :class:`~lightning_practices.callbacks.SnapshotEnsemble`, which sets the
    rates too, the default ``schedule="cosine"`` is left out, and rank 0 logs this. Any other
    schedule beside it is an error.

    Args:
        *args: Positional arguments for the next base class.
        schedule: ``"power"``, ``"exponential"``, ``"step"``, ``"cosine"``, ``"one_cycle"`` or
            ``"plateau"``; or a :class:`~lightning_practices.schedules.LearningRateSchedule`, which
            has the arguments of each; or ``None``, for no schedule. ``"plateau"`` monitors
            ``monitor``.
        **kwargs: Keyword arguments for the next base class; ``monitor`` and ``mode`` are among
            them, see :class:`MonitorMixin`.

    Raises:
        ValueError: If the name of the schedule is unknown, or the schedule needs arguments.
        MisconfigurationException: When the fit starts, see the callback.
        TypeError: On subclassing, if bases are of both packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import LearningRateScheduleMixin
        >>> class Net(LearningRateScheduleMixin, BoringModel):
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        ...     def on_before_optimizer_step(self, optimizer):
        ...         print(round(optimizer.param_groups[0]["lr"], 3))
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=4).fit(Net(schedule="cosine"))
        0.1
        0.075
        0.025
        0.0
    """

    def __init__(
        self,
        *args: Any,
        schedule: LearningRateScheduleName | LearningRateSchedule | None = _SCHEDULE,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        given = configured(
            "schedule",
            schedule,
            LearningRateSchedule,
            (str,),
            LearningRateSchedule,
            "'cosine' or schedule=LearningRateSchedule('cosine', warmup_steps=100)",
        )
        self._is_schedule_default = isinstance(schedule, str) and schedule == _SCHEDULE
        self._learning_rate_scheduler: LearningRateScheduler | None = None
        if given is not None:
            callback = LearningRateScheduler(given, self._monitor, self._mode)
            self._learning_rate_scheduler = self._bring(callback)

    @property
    def learning_rate_scheduler(self) -> LearningRateScheduler | None:
        """The callback, with ``schedule``; ``None`` if off."""
        own = self._learning_rate_scheduler
        return None if own in self._left_out else own

    @override
    def configure_callbacks(self) -> list[Callback]:
        check_constructed(self)
        trainer: Any = self._trainer
        own = self._learning_rate_scheduler
        if trainer is not None and own is not None and self._is_schedule_default:
            is_out = any(isinstance(one, SnapshotEnsemble) for one in trainer.callbacks)
            self._leave_out(own, is_out)
            if is_out:
                trainer.callbacks = [one for one in trainer.callbacks if one is not own]
            if is_out and trainer.state.fn == TrainerFn.FITTING:
                rank_zero_info(
                    "LearningRateScheduleMixin: the Trainer's SnapshotEnsemble sets the learning"
                    f" rates, so the default schedule={_SCHEDULE!r} is left out"
                )
        return super().configure_callbacks()
