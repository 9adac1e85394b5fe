"""The mixin that adds early stopping."""

from typing import Any

from lightning.pytorch import Callback
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping
from lightning_practices.mixins._practice import MonitorMixin, configured


class EarlyStoppingMixin(MonitorMixin):
    """Add :class:`~lightning_practices.callbacks.EarlyStopping` to every fit of the module.

    List the mixin before the class that it extends: ``class Net(EarlyStoppingMixin, BaseNet)``. If
    ``Net`` has its own ``configure_callbacks``, extend the list that
    ``super().configure_callbacks()`` returns.

    In Lightning a callback of the module replaces the Trainer's callbacks of the same type, and a
    message is logged. So the mixin's callback replaces each ``EarlyStopping`` that was passed to
    the Trainer, whatever it monitors. To use a second ``EarlyStopping``, return it from
    ``configure_callbacks``. finetuning-scheduler, which stops by itself, is refused.

    Args:
        *args: Positional arguments for the next base class.
        early_stopping: The patience: the number of validations in a row without improvement of
            ``monitor`` that ends training; or an
            :class:`~lightning_practices.callbacks.EarlyStopping`, which has its own ``monitor``,
            ``mode`` and ``patience``; or ``None``, for no early stopping.
        **kwargs: Keyword arguments for the next base class; ``monitor`` and ``mode`` are among
            them, see :class:`MonitorMixin`.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning.
        MisconfigurationException, ValueError: See the callback.
    """

    def __init__(
        self, *args: Any, early_stopping: int | EarlyStopping | None = 10, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        monitor = early_stopping if isinstance(early_stopping, str) else self._monitor
        callback = configured(
            "early_stopping",
            early_stopping,
            EarlyStopping,
            (int,),
            lambda patience: EarlyStopping(self._monitor, patience=patience, mode=self._mode),
            f"10 or early_stopping=EarlyStopping({monitor!r}, patience=10)",
        )
        self._early_stopping = self._bring(callback)

    @override
    def configure_callbacks(self) -> list[Callback]:
        callbacks = super().configure_callbacks()
        if self._trainer is not None and self._early_stopping is not None:
            # Before its setup, in which it takes our callback for one of Lightning's.
            self._early_stopping.refuse_others(self._trainer)
        return callbacks

    @property
    def early_stopping(self) -> EarlyStopping | None:
        """The callback, with ``best_step``, ``fit_steps``, ``best_score``; ``None`` if off."""
        return self._early_stopping
