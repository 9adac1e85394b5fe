"""The callback that clips gradients by the fused kernels."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices.callbacks._clipping.clipper import Clipper
from lightning_practices.callbacks._clipping.settings import ClippingAlgorithm, ClippingSettings
from lightning_practices.callbacks._practice import PracticeCallback


class GradientClipping(PracticeCallback):
    r"""Clip gradients by norm, by value or adaptively, once for each optimizer step.

    Right before each step of an optimizer it calls :func:`lightning_kernels.clip_grad_norm_`,
    :func:`~lightning_kernels.clip_grad_value_` or :func:`~lightning_kernels.clip_grad_adaptive_` on
    the parameters of that optimizer. It works with every precision, under automatic and manual
    optimization, on one device, under DDP, FSDP2 and tensor parallelism. The host doesn't wait for
    the device, except where stated below.

    **Thresholds.** Parameters whose name matches a pattern of ``groups`` are clipped together, by
    their joint norm and the threshold of that group. All other parameters are clipped together by
    ``value``, or by the ``percentile`` of the last 1000 norms, including the norm of the present
    step, as in AutoClip. The ``percentile`` clips the first steps little. With ``warmup_steps=N``
    each threshold is multiplied by :math:`1/N` at the first step, :math:`2/N` at the second and 1
    from the :math:`N`-th on. Without ``value``, ``groups`` and ``percentile`` nothing is clipped,
    and the logged norms help to choose a ``value``.

    **Logs.** If there is a logger or :class:`LearningCurves`, every ``log_every_n_steps``:

    - ``grad_norm``, the norm of all gradients before clipping, and ``grad_norm_clipped``, after it;
    - ``grad_clipped_fraction``, the share of the steps so far in which gradients were clipped (for
      clipping by value and adaptive clipping, the share of the logged steps);
    - ``grad_clip_threshold``, if it changes from step to step;
    - with ``log_layers="top5"``, only in loggers, ``grad_norm/<layer>`` of the five layers with the
      largest norms before clipping. At these steps the host waits for the device.

    The log names of a second optimizer end in ``-1``, those of a third in ``-2``, and so on.

    **Limits.** Under FSDP1 (``FSDPStrategy``) the norm has one threshold for all parameters, and
    clipping by value logs nothing. Under DeepSpeed the engine has to clip, and this callback raises
    an error. Lightning can't clip for an optimizer that unscales gradients itself, as fused
    optimizers do under ``"16-mixed"``. This callback can: it multiplies the thresholds by the loss
    scale. The host waits for the device to read the scale, except with ``fused=True``. A norm of
    nan or infinity makes gradients nan, as in torch: see :class:`SkipNonFinite`.

    **Clipping within the step.** With ``fused=True`` the optimizer scales the gradients in its own
    kernel, which saves a pass over them: see :func:`~lightning_practices.optim.clip_in_step`. Under
    ``"16-mixed"`` the same kernel unscales the gradients, and the norm replaces the scaler's check
    for nan and infinity. Use ``fused`` under ``"16-mixed"``, or if most steps are clipped. Code
    that reads the gradients just before the step sees them unclipped; after the step they are
    clipped.

    **Checkpoints** hold the step counts and the past norms, so that a resumed fit is identical to
    an uninterrupted fit.

    Sources: see the three functions; for ``percentile`` Seetharaman et al., 2020, "AutoClip:
    adaptive gradient clipping for source separation networks", arXiv:2007.14469.

    Args:
        value: The largest norm (``"norm"``), the largest absolute value (``"value"``), or the
            largest ratio of the norms of gradient and weights, ``clip_factor`` (``"adaptive"``).
        algorithm: ``"norm"``, ``"value"`` or ``"adaptive"``.
        groups: A threshold for each pattern of parameter names, in which ``*`` matches any
            characters; ``inf`` leaves a group unclipped. The first pattern that matches a name is
            used.
        percentile: The percentile of past norms to clip by, from 0 to 100, in place of ``value``.
        warmup_steps: The number of optimizer steps in which thresholds grow to their full values.
        log_layers: The number of layers whose norms are logged, as in ``"top5"``.
        fused: Whether the optimizer clips within its step. This needs clipping by norm, with one
            ``value`` for all parameters, and an optimizer of torch with ``fused=True``.

    Raises:
        ValueError: If an argument is out of its range, or two contradict each other. When the fit
            starts, if a pattern matches no parameter.
        MisconfigurationException: When the fit starts, if the Trainer has a ``gradient_clip_val``,
            if the strategy doesn't allow clipping or if, with ``fused``, an optimizer isn't fused.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import GradientClipping
        >>> module, clip = BoringModel(), GradientClipping(0.1)
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2, callbacks=[clip]).fit(module)
        >>> grads = [parameter.grad for parameter in module.parameters()]  # of the last step
        >>> torch.nn.utils.get_total_norm(grads)
        tensor(0.1000)
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
        groups = {} if groups is None else groups
        settings = ClippingSettings(
            value, algorithm, groups, percentile, warmup_steps, log_layers, fused
        )
        self._clipper = Clipper(settings)

    @property
    def serves_module(self) -> bool:
        """Whether this is a copy that :meth:`for_module` made."""
        return self._clipper.serves_module

    def for_module(self) -> Self:
        """Return a copy for a module that calls :meth:`clip` in a hook of its own.

        The copy doesn't clip by itself. Without a threshold it takes the Trainer's
        ``gradient_clip_val`` and ``gradient_clip_algorithm``. The module has to return the copy
        from ``configure_callbacks``, as :class:`~lightning_practices.mixins.GradientClippingMixin`
        does.
        """
        copy = deepcopy(self)
        copy._clipper.serves_module = True
        return copy

    def clip(self, pl_module: LightningModule, optimizer: Any, *, in_step: bool = True) -> None:
        """Clip the gradients of an optimizer, and log every ``log_every_n_steps``.

        Args:
            pl_module: The module of the fit.
            optimizer: The optimizer. If none of its parameters has a gradient, nothing happens.
            in_step: ``True`` if this is called within ``optimizer.step``, where Lightning has
                unscaled the gradients; ``False`` if it is called before the step.

        Raises:
            RuntimeError: If the fit hasn't started, or started without this callback.
            ValueError: If ``optimizer`` isn't one of the Trainer's optimizers.
        """
        self._clipper.clip(pl_module, optimizer, in_step=in_step)

    @override
    def _reset(self) -> None:
        self._clipper.reset()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._clipper.setup(trainer)

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
