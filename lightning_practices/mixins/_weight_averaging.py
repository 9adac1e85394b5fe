"""Averaged weights as a part of the module."""

from typing import Any

from lightning_practices.callbacks import AveragingKind, WeightAveraging
from lightning_practices.mixins._practice import PracticeMixin, configured


class WeightAveragingMixin(PracticeMixin):
    """Bring :class:`~lightning_practices.callbacks.WeightAveraging` to every fit of the module.

    List it before the module it extends: ``class Net(WeightAveragingMixin, BaseNet)``. If ``Net``
    has its own ``configure_callbacks``, extend the list that ``super().configure_callbacks()``
    returns. It replaces a ``WeightAveraging`` that was passed to the Trainer, and Lightning says
    so.

    Args:
        *args: Passed on.
        weight_averaging: ``"ema"`` or ``"swa"``; or a
            :class:`~lightning_practices.callbacks.WeightAveraging`; or ``None``, to average
            nothing.
        **kwargs: Passed on.

    Raises:
        ValueError: If it is neither of the two names.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        *args: Any,
        weight_averaging: AveragingKind | WeightAveraging | None = "ema",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        callback = configured(
            "weight_averaging", weight_averaging, WeightAveraging, (str,), WeightAveraging
        )
        self._weight_averaging = self._bring(callback)

    @property
    def weight_averaging(self) -> WeightAveraging | None:
        """The callback: its ``averaged``, ``averaged_weights``; ``None`` without averaging."""
        return self._weight_averaging
