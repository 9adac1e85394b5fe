"""A learning-rate schedule as a part of the module."""

from typing import Any

from lightning_practices.callbacks import LearningRateScheduler
from lightning_practices.mixins._practice import MonitorMixin, configured
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName


class LearningRateScheduleMixin(MonitorMixin):
    """Bring :class:`~lightning_practices.callbacks.LearningRateScheduler` to every fit.

    List it before the module it extends: ``class Net(LearningRateScheduleMixin, BaseNet)``. The
    ``configure_optimizers`` of ``Net`` returns the optimizer alone. If ``Net`` has its own
    ``configure_callbacks``, extend the list that ``super().configure_callbacks()`` returns.

    Args:
        *args: Passed on.
        schedule: ``"power"``, ``"exponential"``, ``"step"``, ``"cosine"``, ``"one_cycle"`` or
            ``"plateau"``; or a :class:`~lightning_practices.schedules.LearningRateSchedule`, which
            has the arguments of each; or ``None``, to leave the rates alone. ``"plateau"`` judges
            ``monitor``.
        **kwargs: Passed on, among them ``monitor`` and ``mode``, see :class:`MonitorMixin`.

    Raises:
        ValueError: If there is no such schedule, or it needs arguments.
        MisconfigurationException: When the fit starts, see the callback.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        *args: Any,
        schedule: LearningRateScheduleName | LearningRateSchedule | None = "cosine",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        given = configured("schedule", schedule, LearningRateSchedule, (str,), LearningRateSchedule)
        self._learning_rate_scheduler: LearningRateScheduler | None = None
        if given is not None:
            callback = LearningRateScheduler(given, self._monitor, self._mode)
            self._learning_rate_scheduler = self._bring(callback)

    @property
    def learning_rate_scheduler(self) -> LearningRateScheduler | None:
        """The callback: its ``schedule``; ``None`` without a schedule."""
        return self._learning_rate_scheduler
