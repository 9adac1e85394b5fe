"""The mixin that averages weights."""

from typing import Any

from lightning_practices.callbacks import AveragingKind, WeightAveraging
from lightning_practices.mixins._practice import PracticeMixin, configured


class WeightAveragingMixin(PracticeMixin):
    """Add :class:`~lightning_practices.callbacks.WeightAveraging` to every fit of the module.

    List the mixin before the class that it extends: ``class Net(WeightAveragingMixin, BaseNet)``.
    If ``Net`` has its own ``configure_callbacks``, extend the list that
    ``super().configure_callbacks()`` returns. The mixin's callback replaces a ``WeightAveraging``
    that was passed to the Trainer, and Lightning logs a message.

    Args:
        *args: Positional arguments for the next base class.
        weight_averaging: ``"ema"`` or ``"swa"``; or a
            :class:`~lightning_practices.callbacks.WeightAveraging`; or ``None``, for no averaging.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        ValueError: If ``weight_averaging`` is a string other than ``"ema"`` and ``"swa"``.
        TypeError: On subclassing, if bases are of both packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import WeightAveraging
        >>> from lightning_practices.mixins import WeightAveragingMixin
        >>> class Net(WeightAveragingMixin, BoringModel):
        ...     def on_train_batch_end(self, *_):
        ...         biases.append(self.layer.bias.clone())
        >>> averaging, biases = WeightAveraging("swa", start=0, interval="step"), []
        >>> module = Net(weight_averaging=averaging)
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=4).fit(module)
        >>> torch.allclose(module.layer.bias, torch.stack(biases).mean(0), atol=1e-6)
        True
    """

    def __init__(
        self,
        *args: Any,
        weight_averaging: AveragingKind | WeightAveraging | None = "ema",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        callback = configured(
            "weight_averaging",
            weight_averaging,
            WeightAveraging,
            (str,),
            WeightAveraging,
            "'ema' or weight_averaging=WeightAveraging('ema')",
        )
        self._weight_averaging = self._bring(callback)

    @property
    def weight_averaging(self) -> WeightAveraging | None:
        """The callback, with ``averaged`` and ``averaged_weights``; ``None`` if off."""
        return self._weight_averaging
