"""The mixin that schedules the learning rate."""

from typing import Any

from lightning_practices.callbacks import LearningRateScheduler
from lightning_practices.mixins._practice import MonitorMixin, configured
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName


class LearningRateScheduleMixin(MonitorMixin):
    """Add :class:`~lightning_practices.callbacks.LearningRateScheduler` to every fit.

    List the mixin before the class that it extends: ``class Net(LearningRateScheduleMixin,
    BaseNet)``. The ``configure_optimizers`` of ``Net`` returns the optimizer alone. If ``Net`` has
    its own ``configure_callbacks``, extend the list that ``super().configure_callbacks()`` returns.

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
    """

    def __init__(
        self,
        *args: Any,
        schedule: LearningRateScheduleName | LearningRateSchedule | None = "cosine",
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
        self._learning_rate_scheduler: LearningRateScheduler | None = None
        if given is not None:
            callback = LearningRateScheduler(given, self._monitor, self._mode)
            self._learning_rate_scheduler = self._bring(callback)

    @property
    def learning_rate_scheduler(self) -> LearningRateScheduler | None:
        """The callback, with ``schedule``; ``None`` if off."""
        return self._learning_rate_scheduler
