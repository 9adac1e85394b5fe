"""The callback that clips gradients by the fused kernels."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._clipping.clipper import Clipper
from lightning_practices.callbacks._clipping.settings import ClippingAlgorithm, ClippingSettings


class GradientClipping(Callback):
    r"""Clip gradients by norm, by value or adaptively, once for each optimizer step.

    Right before each step of an optimizer it calls :func:`lightning_kernels.clip_grad_norm_`,
    :func:`~lightning_kernels.clip_grad_value_` or :func:`~lightning_kernels.clip_grad_adaptive_` on
    the parameters of that optimizer. It works with every precision, under automatic and manual
    optimization, on one device, under DDP, FSDP2 and tensor parallelism. Training doesn't wait for
    the device, except where stated below.

    **Thresholds.** Parameters whose name matches a pattern of ``groups`` are clipped together, by
    their own norm and the value of that group. All other parameters are clipped together by
    ``value``, or by the ``percentile`` of the last 1000 norms, that of the present step included,
    as AutoClip does: the first steps are then clipped little. With ``warmup_steps=N`` each
    threshold is multiplied by :math:`1/N` at the first step, :math:`2/N` at the second and 1 from
    the :math:`N`-th on. Without any of these nothing is clipped and norms are logged: a way to find
    a value.

    **Logs.** If there is a logger or :class:`LearningCurves`, every ``log_every_n_steps``:

    - ``grad_norm``, the norm of all gradients before clipping, and ``grad_norm_clipped``, after it;
    - ``grad_clipped_fraction``, the share of the steps so far in which anything was clipped (by
      value and adaptively, of the steps that were logged);
    - ``grad_clip_threshold``, if it changes from step to step;
    - with ``log_layers="top5"``, to loggers, ``grad_norm/<layer>`` of the five layers whose norms
      before clipping are largest. These steps wait for the device.

    The names of a second optimizer end in ``-1``, of a third in ``-2`` and so on.

    **Limits.** Under FSDP1 (``FSDPStrategy``) the norm has one threshold for all parameters, and
    clipping by value logs nothing. Under DeepSpeed the engine clips, and this callback refuses.
    Lightning can't clip for an optimizer that unscales gradients itself, as fused ones do under
    ``"16-mixed"``. This callback multiplies the thresholds by the loss scale instead, for which it
    waits for the device unless ``fused``. A norm of nan or infinity makes gradients nan, as in
    torch: see :class:`SkipNonFinite`.

    **Clipping within the step.** With ``fused=True`` the optimizer scales the gradients in its own
    kernel, which saves a pass over them: see :func:`~lightning_practices.optim.clip_in_step`. Under
    ``"16-mixed"`` the optimizer unscales them there too, and the norm replaces the scaler's search
    for nan and infinity. Use it there, or where most steps are clipped. The gradients are then
    clipped after the step, and not yet before it.

    **Checkpoints** hold the steps, counts and norms, so that a resumed fit is the same as one that
    wasn't interrupted.

    Sources: those of the functions; for the percentile Seetharaman et al., 2020, "AutoClip:
    adaptive gradient clipping for source separation networks", arXiv:2007.14469.

    Args:
        value: The largest norm (``"norm"``), the largest absolute value (``"value"``), or the
            largest ratio of the norms of gradient and weights, ``clip_factor`` (``"adaptive"``).
        algorithm: ``"norm"``, ``"value"`` or ``"adaptive"``.
        groups: A value for each pattern of parameter names, in which ``*`` stands for anything;
            ``inf`` leaves a group alone. The first pattern that matches a name counts.
        percentile: The percentile of past norms to clip by, from 0 to 100, in place of ``value``.
        warmup_steps: The number of optimizer steps in which thresholds grow.
        log_layers: How many layers' norms to log, as in ``"top5"``.
        fused: Whether the optimizer clips in its step: by norm, with one value for all parameters.
            It has to be one of torch's with ``fused=True``.

    Raises:
        ValueError: If an argument is out of its range, or two contradict each other. When the fit
            starts, if a pattern matches no parameter.
        MisconfigurationException: When the fit starts, if the Trainer has a ``gradient_clip_val``,
            if the strategy doesn't allow it or if, with ``fused``, an optimizer isn't fused.
        TypeError: If the trainer or the module is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        value: float | None = None,
        algorithm: ClippingAlgorithm = "norm",
        *,
        groups: Mapping[str, float] | None = None,
        percentile: float | None = None,
        warmup_steps: int = 0,
        log_layers: str | None = None,
        fused: bool = False,
    ) -> None:
        settings = ClippingSettings(
            value, algorithm, dict(groups or {}), percentile, warmup_steps, log_layers, fused
        )
        self._clipper = Clipper(settings)

    @property
    def serves_module(self) -> bool:
        """Whether this is a copy by :meth:`for_module`."""
        return self._clipper.serves_module

    def for_module(self) -> Self:
        """Return a copy for a module that calls :meth:`clip` in a hook of its own.

        The copy doesn't clip by itself. Without a threshold it takes the Trainer's
        ``gradient_clip_val`` and ``gradient_clip_algorithm``. The module has to return it from
        ``configure_callbacks``. :class:`~lightning_practices.mixins.GradientClippingMixin` does
        both.
        """
        copy = deepcopy(self)
        copy._clipper.serves_module = True
        return copy

    def clip(self, pl_module: LightningModule, optimizer: Any, *, in_step: bool = True) -> None:
        """Clip the gradients of an optimizer, and log if it is time to.

        Args:
            pl_module: The module that is fitted.
            optimizer: The optimizer. If none of its parameters has a gradient, nothing happens.
            in_step: Whether this is called within ``optimizer.step``, where Lightning has unscaled
                the gradients, and not before it.

        Raises:
            RuntimeError: If the fit hasn't started, or started without this callback.
            ValueError: If it isn't one of the Trainer's optimizers.
        """
        self._clipper.clip(pl_module, optimizer, in_step=in_step)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reject_twin(trainer, pl_module)
        if stage != "fit":
            return
        self._clipper.setup(trainer)
        if trainer.global_step == 0:  # otherwise the fit goes on from an earlier one
            self._clipper.reset()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clipper.start(pl_module)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not self.serves_module:
            self.clip(pl_module, optimizer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._clipper.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._clipper.load_state_dict(state_dict)
