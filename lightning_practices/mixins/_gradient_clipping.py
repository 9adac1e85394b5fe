"""The mixin that clips gradients."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping
from lightning_practices.mixins._practice import PracticeMixin, configured


class GradientClippingMixin(PracticeMixin):
    """Add :class:`~lightning_practices.callbacks.GradientClipping` to every fit of the module.

    List the mixin before the class that it extends: ``class Net(GradientClippingMixin, BaseNet)``.
    If ``Net`` has its own ``configure_callbacks``, extend the list that
    ``super().configure_callbacks()`` returns. The mixin's callback replaces a ``GradientClipping``
    that was passed to the Trainer, and Lightning logs a message.

    The mixin clips in ``configure_gradient_clipping``, after ``on_before_optimizer_step`` of
    callbacks and module. It replaces the ``configure_gradient_clipping`` of the base classes. Under
    manual optimization Lightning doesn't call this hook: call :meth:`clip_gradients_of` instead.

    **The Trainer's value.** ``GradientClipping()``, without a value, takes the Trainer's
    ``gradient_clip_val`` and ``gradient_clip_algorithm``, and the kernels clip by them as torch's
    functions would. A value in both places is an error. Under DeepSpeed give the value to the
    Trainer, since DeepSpeed's engine clips. Lightning warns about the overridden hook even then.

    Args:
        *args: Positional arguments for the next base class.
        gradient_clipping: The largest norm of the gradients; or a
            :class:`~lightning_practices.callbacks.GradientClipping`; or ``None``, to leave clipping
            to Lightning, which clips by the Trainer's ``gradient_clip_val``.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        MisconfigurationException: When the fit starts, if both the Trainer and the mixin have a
            value, or the strategy doesn't support the arguments.
        ValueError: If the norm isn't positive. When the fit starts, if a pattern matches no
            parameter.
        TypeError: On subclassing, if bases are of both packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import GradientClippingMixin
        >>> class Net(GradientClippingMixin, BoringModel): ...
        >>> module = Net(gradient_clipping=0.1)
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2).fit(module)
        >>> grads = [parameter.grad for parameter in module.parameters()]  # of the last step
        >>> torch.nn.utils.get_total_norm(grads)
        tensor(0.1000)
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
            "1.0 or gradient_clipping=GradientClipping(1.0)",
        )
        self._gradient_clipping = self._bring(callback and callback.for_module())

    @property
    def gradient_clipping(self) -> GradientClipping | None:
        """The callback; ``None`` if off."""
        return self._gradient_clipping

    def clip_gradients_of(self, optimizer: Any) -> None:
        """Clip the gradients of an optimizer, under manual optimization.

        Call it after ``manual_backward`` and before ``optimizer.step()``, once for each step. Under
        ``"16-mixed"`` the gradients are still scaled at this point, so the thresholds are scaled
        too. To read the scale, the host waits for the device. The callback in the Trainer, without
        the mixin, clips within the step and doesn't wait.

        Args:
            optimizer: An optimizer that the module's ``optimizers()`` returns.

        Raises:
            MisconfigurationException: Under automatic optimization, which clips without this call.
            ValueError: If ``optimizer`` isn't one of the Trainer's optimizers.
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
        else:  # super() would clip by torch's functions
            self._gradient_clipping.clip(self, optimizer)
