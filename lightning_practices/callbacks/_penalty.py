"""The callback that penalises large weights."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_practices._arguments import check_flag, check_names, check_number
from lightning_practices.callbacks._clipping import GradientClipping
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.logs import logs_now
from lightning_practices.callbacks._trainer.optimizers import grad_scaler, place_of
from lightning_practices.callbacks._trainer.others import callbacks_of, set_callbacks
from lightning_practices.callbacks._trainer.strategies import FSDP1_OR_DEEPSPEED, refuse
from lightning_practices.optim import (
    KINDS,
    add_penalty_gradients_,
    clips_in_step,
    decayed_weights,
    penalty,
    soft_threshold_,
)


class Penalty(PracticeCallback):
    r"""Penalise large weights by L1, L2 or both (the elastic net), without a term in the loss.

    The effect is as if :math:`\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2` were added to the
    loss. The gradient of this term is added to the gradients before each step of an optimizer and
    before they are clipped, see :func:`~lightning_practices.optim.add_penalty_gradients_`. So the
    logged loss stays that of the task, a step of accumulated batches is penalised once, and
    ``training_step`` needs no change. It works with every precision, under automatic and manual
    optimization, on one device, under DDP, FSDP2 and tensor parallelism. The host never waits for
    the device.

    The penalised weights are those that :func:`~lightning_practices.optim.decayed_weights` returns
    (no biases, norms or embeddings), if they have a gradient.

    **Exact zeros.** With ``proximal=True`` L1 adds no gradient. Instead,
    :func:`~lightning_practices.optim.soft_threshold_` shrinks the weights after each step, by the
    present learning rate of their group times ``l1``. A step that a ``GradScaler`` or
    :class:`SkipNonFinite` skips leaves the weights unchanged.

    **Weight decay** differs from L2 under adaptive optimizers such as ``AdamW``: they divide the
    gradient of L2 by the size of the gradients, but not the weight decay. If an optimizer decays a
    penalised weight, both shrink it, and a warning is shown.

    The value of the penalty before the step is logged as ``penalty`` every ``log_every_n_steps``,
    if there is a logger or :class:`LearningCurves`. For the second of several optimizers the name
    is ``penalty-1``, and for a second ``Penalty`` callback ``penalty2``.

    The callback has no state: a resumed fit uses the strengths given now.

    Source: "L1 and L2 regularization", lectures S3 and S4; for ``proximal`` see
    :func:`~lightning_practices.optim.soft_threshold_`.

    Args:
        l1: The strength of L1, :math:`\lambda_1`.
        l2: The strength of L2, :math:`\lambda_2`.
        exclude: The parameters to leave unpenalised: ``"norm"``, ``"bias"``, ``"embedding"`` and
            patterns of parameter names, see :func:`~lightning_practices.optim.decayed_weights`.
        proximal: Whether L1 shrinks the weights after the step, to exact zeros, rather than by its
            gradient.

    Raises:
        ValueError: If ``l1`` or ``l2`` is negative or not finite. When the fit starts, if a pattern
            matches no parameter.
        MisconfigurationException: When the fit starts, if no weight is left to penalise; if the
            strategy is FSDP1 or DeepSpeed; if an optimizer is ``LBFGS``, which compares losses, or
            maximises; or if the module clips before the step, as ``GradientClippingMixin`` does
            under manual optimization.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import Penalty
        >>> module, penalty = BoringModel(), Penalty(l1=10.0, proximal=True)  # far too strong
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2, callbacks=[penalty]).fit(module)
        >>> module.layer.weight.count_nonzero(), module.layer.bias.count_nonzero()
        (tensor(0), tensor(2))
    """

    def __init__(
        self,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        exclude: Sequence[str] = KINDS,
        proximal: bool = False,
    ) -> None:
        self.l1 = check_number("l1", l1, ge=0)
        self.l2 = check_number("l2", l2, ge=0)
        self.exclude = check_names("exclude", exclude)
        self.proximal = check_flag("proximal", proximal)
        self._penalised: set[int] = set()  # the ids of weights, while a fit runs
        self._handles: list[RemovableHandle] = []
        self._log_name = "penalty"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse(
            trainer,
            *FSDP1_OR_DEEPSPEED,
            who="Penalty",
            cannot="read single weights and their gradients",
            instead="use ModelParallelStrategy (FSDP2), or the optimizer's weight_decay",
        )
        self._come_before_clipping(trainer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The module is wrapped and sharded by now, so it has the same parameters as the optimizers.
        weights = decayed_weights(pl_module, self.exclude)
        if not weights:
            raise MisconfigurationException(
                f"{type(pl_module).__name__} has no weight to penalise: exclude="
                f"{self.exclude} leaves none"
            )
        self._penalised = {id(p) for p in weights.values()}
        clips_before = any(one.serves_module for one in callbacks_of(trainer, GradientClipping))
        if clips_before and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "under manual optimization GradientClippingMixin clips before the step and so"
                " before the penalty is added: use the callback GradientClipping, which clips in it"
            )
        for optimizer in trainer.optimizers:
            _check_optimizer(optimizer)
            if self.proximal and self.l1:
                _check_rates(optimizer)
                self._handles.append(optimizer.register_step_post_hook(self._shrink))
        place = callbacks_of(trainer, Penalty).index(self)
        self._log_name = f"penalty{place + 1}" if place else "penalty"

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Checked only here, since a checkpoint restores the groups with their weight decay.
        for optimizer in trainer.optimizers if self.l1 or self.l2 else []:
            for group in optimizer.param_groups:
                decay = group.get("weight_decay", 0.0)
                both = sum(id(p) in self._penalised for p in group["params"])
                if decay and both:
                    rank_zero_warn(
                        f"{type(optimizer).__name__} decays {both} of the parameters that Penalty"
                        f" penalises (weight_decay={decay}), so both shrink them: use one of the"
                        " two, as with weight_decay=0"
                    )

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        weights = [w for group in optimizer.param_groups for w in self._weights_of(group)]
        if not weights:
            return
        if logs_now(trainer):
            with torch.no_grad():
                value = penalty(weights, l1=self.l1, l2=self.l2)
            place = place_of(trainer, optimizer)
            pl_module.log(f"{self._log_name}-{place}" if place else self._log_name, value)
        add_penalty_gradients_(
            weights,
            l1=0.0 if self.proximal else self.l1,
            l2=self.l2,
            scale=_loss_scale(trainer, optimizer, weights[0].device),
        )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._forget()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._forget()  # after an exception Lightning doesn't call teardown

    def _shrink(self, optimizer: Optimizer, *_: Any) -> None:
        """Shrink the weights by L1 after an optimizer step."""
        # The GradScaler sets this on a fused optimizer: 1 if the step was skipped, otherwise 0.
        skipped = getattr(optimizer, "found_inf", None)
        for group in optimizer.param_groups:
            threshold = group["lr"] * self.l1
            if skipped is not None:
                threshold = threshold * (1 - skipped)
            soft_threshold_(self._weights_of(group), threshold)

    def _weights_of(self, group: dict[str, Any]) -> list[Tensor]:
        return [p for p in group["params"] if id(p) in self._penalised and p.grad is not None]

    def _come_before_clipping(self, trainer: Trainer) -> None:
        """Move this callback before any ``GradientClipping``, which then clips the penalty too."""
        callbacks = callbacks_of(trainer, Callback)
        others = [callback for callback in callbacks if callback is not self]
        clipping = (i for i, other in enumerate(others) if isinstance(other, GradientClipping))
        place = min(callbacks.index(self), next(clipping, len(others)))
        set_callbacks(trainer, [*others[:place], self, *others[place:]])

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._penalised = [], set()


def _check_optimizer(optimizer: Optimizer) -> None:
    if isinstance(optimizer, LBFGS):
        raise MisconfigurationException(
            "Penalty adds to gradients, and LBFGS compares losses, which lack the penalty: add"
            " lightning_practices.optim.penalty(weights) to the loss in training_step, or use"
            " another optimizer"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise MisconfigurationException(
            f"{type(optimizer).__name__}(maximize=True) would let Penalty enlarge the weights:"
            " minimise the negative loss instead"
        )


def _check_rates(optimizer: Optimizer) -> None:
    if not all("lr" in group for group in optimizer.param_groups):
        raise MisconfigurationException(
            f"proximal=True shrinks by the learning rate, and {type(optimizer).__name__} has none:"
            " leave proximal out"
        )


def _loss_scale(trainer: Trainer, optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """Return the loss scale of the gradients, on the device; ``None`` if they are unscaled."""
    scaler = grad_scaler(trainer)
    if scaler is None or not clips_in_step(optimizer):  # Lightning unscaled the gradients
        return None
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale
