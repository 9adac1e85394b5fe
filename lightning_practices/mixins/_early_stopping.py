"""Early stopping as a part of the module."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks import EarlyStopping, Mode


class EarlyStoppingMixin(LightningModule):
    """Bring :class:`~lightning_practices.callbacks.EarlyStopping` to every fit of the module.

    List it before the module it extends: ``class Net(EarlyStoppingMixin, BaseNet)``. A
    ``configure_callbacks`` of yours has to extend what ``super().configure_callbacks()`` returns.

    By Lightning's rule a callback of the module replaces those of its type in the Trainer, and
    Lightning says so: this one replaces each ``EarlyStopping`` that was passed to the Trainer,
    whatever it monitors. Return a second one from ``configure_callbacks``.

    Args:
        *args: Passed on.
        early_stopping_monitor: Name of the logged value to watch, or several names.
        early_stopping_mode: Whether the value is to fall, ``"min"``, or to rise, ``"max"``; one for
            all values or one for each.
        early_stopping_patience: Checks without improvement after which training stops.
        early_stopping_min_delta: Least change that counts as an improvement; one for all values or
            one for each.
        **kwargs: Passed on.

    Raises:
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
        MisconfigurationException, ValueError: As the callback does.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reject_twin(cls)

    def __init__(
        self,
        *args: Any,
        early_stopping_monitor: str | Sequence[str] = "val_loss",
        early_stopping_mode: Mode | Sequence[Mode] = "min",
        early_stopping_patience: int = 3,
        early_stopping_min_delta: float | Sequence[float] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._early_stopping = EarlyStopping(
            monitor=early_stopping_monitor,
            mode=early_stopping_mode,
            patience=early_stopping_patience,
            min_delta=early_stopping_min_delta,
        )

    @property
    def early_stopping(self) -> EarlyStopping:
        """The callback: its ``best_step``, ``fit_steps``, ``best_score``, ``stopped_epoch``."""
        return self._early_stopping

    @override
    def configure_callbacks(self) -> list[Callback]:
        given = super().configure_callbacks()
        others = [given] if isinstance(given, Callback) else given
        return [*others, self._early_stopping]  # one instance: Lightning asks again for each run
