"""Gradient clipping as a part of the module."""

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks import ClippingAlgorithm, GradientClipping


class GradientClippingMixin(LightningModule):
    """Bring :class:`~lightning_practices.callbacks.GradientClipping` to every fit of the module.

    List it before the module it extends: ``class Net(GradientClippingMixin, BaseNet)``. A
    ``configure_callbacks`` of yours has to extend what ``super().configure_callbacks()`` returns.
    It replaces a ``GradientClipping`` that was passed to the Trainer, and Lightning says so.

    Without a value of its own it takes the Trainer's ``gradient_clip_val`` and
    ``gradient_clip_algorithm``, so that the kernels do what torch's functions would have done. Two
    values are an error. Under DeepSpeed give the Trainer's, by which its engine clips; Lightning
    warns of the hook nonetheless.

    It clips in ``configure_gradient_clipping``, so after ``on_before_optimizer_step`` of callbacks
    and module, and in place of what a base class does there. Under manual optimization Lightning
    doesn't call that: call :meth:`clip_gradients_of`.

    Args:
        *args: Passed on.
        gradient_clipping_value: Largest norm, largest absolute value, or largest ratio of norms.
        gradient_clipping_algorithm: ``"norm"``, ``"value"`` or ``"adaptive"``.
        gradient_clipping_groups: Values for parameters by patterns of their names.
        gradient_clipping_percentile: In place of a value, of past norms.
        gradient_clipping_warmup_steps: Optimizer steps in which thresholds grow.
        gradient_clipping_log_layers: How many layers' norms to log, as in ``"top5"``.
        gradient_clipping_fused: Whether a fused optimizer clips in its step.
        **kwargs: Passed on.

    Raises:
        MisconfigurationException: When the fit starts, if both the Trainer and this have a value,
            or the strategy can't do it.
        ValueError: If an argument is none that there can be. When the fit starts, if a pattern
            matches no parameter.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reject_twin(cls)

    def __init__(
        self,
        *args: Any,
        gradient_clipping_value: float | None = None,
        gradient_clipping_algorithm: ClippingAlgorithm = "norm",
        gradient_clipping_groups: Mapping[str, float] | None = None,
        gradient_clipping_percentile: float | None = None,
        gradient_clipping_warmup_steps: int = 0,
        gradient_clipping_log_layers: str | None = None,
        gradient_clipping_fused: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._gradient_clipping = GradientClipping(
            gradient_clipping_value,
            gradient_clipping_algorithm,
            groups=gradient_clipping_groups,
            percentile=gradient_clipping_percentile,
            warmup_steps=gradient_clipping_warmup_steps,
            log_layers=gradient_clipping_log_layers,
            fused=gradient_clipping_fused,
        ).for_module()

    def clip_gradients_of(self, optimizer: Any) -> None:
        """Clip the gradients of an optimizer, under manual optimization.

        Call it after ``manual_backward`` and before ``optimizer.step()``, once for each step. Under
        ``"16-mixed"`` the gradients are scaled here, and so are the thresholds, for which this
        waits for the device; the callback, which clips in the step, doesn't.

        Args:
            optimizer: One of :meth:`optimizers`.

        Raises:
            MisconfigurationException: Under automatic optimization, where it would be the second
                time.
            ValueError: If it isn't one of the Trainer's optimizers.
        """
        if self.automatic_optimization:
            raise MisconfigurationException(
                "clip_gradients_of is for manual optimization: under automatic optimization"
                " gradients are clipped before each step without it"
            )
        self._gradient_clipping.clip(self, optimizer, in_step=False)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Without super(), which would clip by torch's functions.
        self._gradient_clipping.clip(self, optimizer)

    @override
    def configure_callbacks(self) -> list[Callback]:
        given = super().configure_callbacks()
        others = [given] if isinstance(given, Callback) else given
        return [*others, self._gradient_clipping]  # one instance: Lightning asks for each run
