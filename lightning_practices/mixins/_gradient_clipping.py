"""Gradient clipping as a part of the module."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping
from lightning_practices.mixins._practice import PracticeMixin, configured


class GradientClippingMixin(PracticeMixin):
    """Bring :class:`~lightning_practices.callbacks.GradientClipping` to every fit of the module.

    List it before the module it extends: ``class Net(GradientClippingMixin, BaseNet)``. If ``Net``
    has its own ``configure_callbacks``, extend the list that ``super().configure_callbacks()``
    returns. It replaces a ``GradientClipping`` that was passed to the Trainer, and Lightning says
    so.

    It clips in ``configure_gradient_clipping``: after ``on_before_optimizer_step`` of callbacks and
    module, and in place of what a base class does in that hook. Under manual optimization Lightning
    doesn't call the hook: call :meth:`clip_gradients_of`.

    **The Trainer's value.** ``GradientClipping()``, without a value, takes the Trainer's
    ``gradient_clip_val`` and ``gradient_clip_algorithm``, so that the kernels do what torch's
    functions would have done. Two values are an error. Under DeepSpeed give the Trainer's, by which
    its engine clips; Lightning warns of the hook nonetheless.

    Args:
        *args: Passed on.
        gradient_clipping: Largest norm of the gradients; or a
            :class:`~lightning_practices.callbacks.GradientClipping`; or ``None``, to leave clipping
            to Lightning, which clips by the Trainer's ``gradient_clip_val``.
        **kwargs: Passed on.

    Raises:
        MisconfigurationException: When the fit starts, if both the Trainer and this have a value,
            or the strategy can't clip so.
        ValueError: If the norm isn't positive. When the fit starts, if a pattern matches no
            parameter.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init__(
        self, *args: Any, gradient_clipping: float | GradientClipping | None = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        callback = configured(
            "gradient_clipping",
            gradient_clipping,
            GradientClipping,
            (int, float),
            GradientClipping,
        )
        self._gradient_clipping = self._bring(callback and callback.for_module())

    @property
    def gradient_clipping(self) -> GradientClipping | None:
        """The callback; ``None`` without clipping."""
        return self._gradient_clipping

    def clip_gradients_of(self, optimizer: Any) -> None:
        """Clip the gradients of an optimizer, under manual optimization.

        Call it after ``manual_backward`` and before ``optimizer.step()``, once for each step. Under
        ``"16-mixed"`` the gradients are still scaled there, and so are the thresholds, for which
        this waits for the device. The callback, which clips in the step, doesn't wait.

        Args:
            optimizer: One of :meth:`optimizers`.

        Raises:
            MisconfigurationException: Under automatic optimization, which clips without this call.
            ValueError: If it isn't one of the Trainer's optimizers.
        """
        if self.automatic_optimization:
            raise MisconfigurationException(
                "clip_gradients_of is for manual optimization: under automatic optimization"
                " gradients are clipped before each step without it"
            )
        if self._gradient_clipping is not None:
            self._gradient_clipping.clip(self, optimizer, in_step=False)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self._gradient_clipping is None:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        else:  # without super(), which would clip by torch's functions
            self._gradient_clipping.clip(self, optimizer)
