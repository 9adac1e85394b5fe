"""Gradients clipped by the fused kernels, in any Trainer."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._clipping.clipper import Clipper
from lightning_practices.callbacks._clipping.settings import Algorithm, ClippingSettings


class GradientClipping(Callback):
    r"""Clip gradients by norm, by value or adaptively, once for each optimizer step.

    What :func:`lightning_kernels.clip_grad_norm_`, :func:`~lightning_kernels.clip_grad_value_` or
    :func:`~lightning_kernels.clip_grad_adaptive_` does, right before each step of an optimizer, to
    the parameters of that optimizer alone; whatever the precision, under automatic and manual
    optimization, on one device, under DDP, FSDP2 and tensor parallelism. The fit never waits for
    the device because of it, but for what is said below.

    **Thresholds.** Parameters whose name matches a pattern of ``groups`` are clipped together by
    its value, so by their own norm; all others together by ``value``. Or by the ``percentile`` of
    the last 1000 norms, that of the step included, as AutoClip does: the first steps are then
    clipped little. With ``warmup_steps=N`` each threshold is its :math:`1/N` at the first step,
    :math:`2/N` at the second and the whole from the :math:`N`-th on. Without any of these
    nothing is clipped, and norms are logged: a way to find a value.

    **Logged**, if there is a logger or :class:`LearningCurves`, every ``log_every_n_steps``:
    ``grad_norm``, of all gradients before clipping; ``grad_norm_clipped``, after it;
    ``grad_clipped_fraction``, of the steps so far (by value and adaptively, of those that were
    logged); ``grad_clip_threshold`` if it moves; with ``log_layers="top5"``, for loggers,
    ``grad_norm/<layer>`` of the five layers whose norms are largest before clipping, for which
    these steps wait for the device. The second of several optimizers has ``grad_norm-1`` and so on.

    **Where it differs.** Under FSDP1 (``FSDPStrategy``) there is one threshold for the norm, and
    clipping by value logs nothing. Under DeepSpeed the engine clips, and this refuses. Lightning
    can't clip for an optimizer that unscales gradients itself, as fused ones do under
    ``"16-mixed"``. This does, by thresholds times the loss scale, for which it waits for the
    device unless ``fused``. A norm of nan or infinity makes gradients nan, as in torch: see
    :class:`SkipNonFinite`.

    **Without a pass of its own.** With ``fused=True`` the optimizer scales the gradients in its own
    kernel, see :func:`~lightning_practices.optim.clip_in_step`. Under ``"16-mixed"`` it unscales
    them there too, and the norm replaces the scaler's search for nan and infinity. Use it there, or
    where most steps are clipped. Gradients are then clipped after the step and not before it.

    A checkpoint holds the steps, counts and norms, so that a resumed fit goes on as it would have.

    Source: as for the functions; for the percentile Seetharaman et al., 2020, "AutoClip: adaptive
    gradient clipping for source separation networks", arXiv:2007.14469.

    Args:
        value: Largest norm, largest absolute value, or ``clip_factor``, the largest ratio of norms.
        algorithm: ``"norm"``, ``"value"`` or ``"adaptive"``.
        groups: For names of parameters, in which ``*`` stands for anything, the value of each group
            that is clipped by itself; ``inf`` for one that is left alone. The first match counts.
        percentile: In place of ``value``, of past norms, from 0 to 100.
        warmup_steps: Optimizer steps in which thresholds grow.
        log_layers: How many layers' norms to log, as in ``"top5"``.
        fused: Whether the optimizer, one of torch's with ``fused=True``, clips in its step: by
            norm, with one value for all parameters.

    Raises:
        ValueError: If an argument is none of the above, or two contradict each other. When the fit
            starts, if a pattern matches no parameter.
        MisconfigurationException: When the fit starts, if the Trainer has a ``gradient_clip_val``
            or the strategy or, with ``fused``, an optimizer can't do it.
        TypeError: If the trainer or the module is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        value: float | None = None,
        algorithm: Algorithm = "norm",
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
        self._clipper = Clipper(settings, owner="GradientClipping", adopts=False)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reject_twin(trainer, pl_module)
        if stage != "fit":
            return
        self._clipper.setup(trainer)
        if trainer.global_step == 0:  # not one that goes on
            self._clipper.reset()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clipper.start(pl_module)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._clipper.clip(pl_module, optimizer, in_step=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._clipper.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._clipper.load_state_dict(state_dict)
