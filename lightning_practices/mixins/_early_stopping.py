"""Early stopping as a part of the module."""

from typing import Any

from lightning_practices.callbacks import EarlyStopping
from lightning_practices.mixins._practice import MonitorMixin, configured


class EarlyStoppingMixin(MonitorMixin):
    """Bring :class:`~lightning_practices.callbacks.EarlyStopping` to every fit of the module.

    List it before the module it extends: ``class Net(EarlyStoppingMixin, BaseNet)``. If ``Net`` has
    its own ``configure_callbacks``, extend the list that ``super().configure_callbacks()`` returns.

    By Lightning's rule a callback of the module replaces those of its type in the Trainer, and
    Lightning says so: this one replaces each ``EarlyStopping`` that was passed to the Trainer,
    whatever it monitors. For a second one, return it from ``configure_callbacks``.

    Args:
        *args: Passed on.
        early_stopping: How many validations without improvement of ``monitor`` end training; or an
            :class:`~lightning_practices.callbacks.EarlyStopping`, which has its own ``monitor``,
            ``mode`` and ``patience``; or ``None``, not to stop early.
        **kwargs: Passed on, among them ``monitor`` and ``mode``, see :class:`MonitorMixin`.

    Raises:
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
        MisconfigurationException, ValueError: As the callback does.
    """

    def __init__(
        self, *args: Any, early_stopping: int | EarlyStopping | None = 10, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        callback = configured(
            "early_stopping",
            early_stopping,
            EarlyStopping,
            (int,),
            lambda patience: EarlyStopping(self._monitor, patience=patience, mode=self._mode),
        )
        self._early_stopping = self._bring(callback)

    @property
    def early_stopping(self) -> EarlyStopping | None:
        """The callback: its ``best_step``, ``fit_steps``, ``best_score``, ``stopped_epoch``."""
        return self._early_stopping
