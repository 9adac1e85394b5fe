"""Averaged weights as a part of the module."""

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks import WeightAveraging


class WeightAveragingMixin(LightningModule):
    """Bring :class:`~lightning_practices.callbacks.WeightAveraging` to every fit of the module.

    List it before the module it extends: ``class Net(WeightAveragingMixin, BaseNet)``. A
    ``configure_callbacks`` of yours has to extend what ``super().configure_callbacks()`` returns.
    It replaces a ``WeightAveraging`` that was passed to the Trainer, and Lightning says so.

    Args:
        *args: Passed on.
        weight_averaging_kind: ``"ema"`` or ``"swa"``; ``None`` to average nothing.
        weight_averaging_decay: Of ``"ema"``, 0.999 by default.
        weight_averaging_decay_warmup: Whether the decay grows up to its value.
        weight_averaging_start: After how many steps or epochs, or what share of the fit, averaging
            starts.
        weight_averaging_interval: What is counted, ``"step"`` or ``"epoch"``.
        weight_averaging_frequency: How many of these lie between the weights that are averaged.
        **kwargs: Passed on.

    Raises:
        ValueError: If an argument is none that there can be.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reject_twin(cls)

    def __init__(
        self,
        *args: Any,
        weight_averaging_kind: Literal["ema", "swa"] | None = "ema",
        weight_averaging_decay: float | None = None,
        weight_averaging_decay_warmup: bool = False,
        weight_averaging_start: int | float = 0,
        weight_averaging_interval: Literal["step", "epoch"] | None = None,
        weight_averaging_frequency: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._weight_averaging: WeightAveraging | None = None
        if weight_averaging_kind is not None:
            self._weight_averaging = WeightAveraging(
                weight_averaging_kind,
                decay=weight_averaging_decay,
                decay_warmup=weight_averaging_decay_warmup,
                start=weight_averaging_start,
                interval=weight_averaging_interval,
                frequency=weight_averaging_frequency,
            )

    @property
    def weight_averaging(self) -> WeightAveraging | None:
        """The callback: its ``averaged``, ``averaged_weights``; ``None`` without averaging."""
        return self._weight_averaging

    @override
    def configure_callbacks(self) -> list[Callback]:
        given = super().configure_callbacks()
        others = [given] if isinstance(given, Callback) else given
        if self._weight_averaging is None:
            return [*others]
        return [*others, self._weight_averaging]  # one instance: Lightning asks for each run
