"""The optimizer as a part of the module."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.optim import make_optimizer, parameter_groups
from lightning_practices.optim._optimizer import OptimizerName, check_optimizer
from lightning_practices.optim._parameter_groups import KINDS, check_groups


class OptimizerMixin(LightningModule):
    """Give the module its ``configure_optimizers``: an optimizer by name, with sensible groups.

    What :func:`~lightning_practices.optim.make_optimizer` returns for the
    :func:`~lightning_practices.optim.parameter_groups` of the module: biases, norms and embeddings
    are not decayed, and with a layer decay the rate falls from layer to layer towards the input.

    List it before the module it extends, whose ``configure_optimizers`` it replaces, and after
    ``LearningRateScheduleMixin``, which schedules what this returns: ``class
    Net(LearningRateScheduleMixin, OptimizerMixin, BaseNet)``. A ``configure_optimizers`` of the
    class itself stands, and can return ``super().configure_optimizers()`` or, for several
    optimizers, ``[self.make_optimizer(self.generator), self.make_optimizer(self.discriminator)]``.

    It isn't fused under ``"16-mixed"``, nor under ``"bf16-mixed"`` with the Trainer's
    ``gradient_clip_val``, for Lightning wouldn't clip; nor where an embedding has sparse gradients,
    which fused optimizers don't take. What you make yourself stays as it is.

    Args:
        *args: Passed on.
        optimizer: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"``, ``"rmsprop"``,
            ``"adam"`` or ``"adamw"``; or what makes an optimizer from groups of parameters, such as
            ``partial(torch.optim.NAdam, lr=1e-3)``.
        optimizer_lr: Learning rate. Default: the optimizer's own.
        optimizer_weight_decay: Of the weights. Default: the optimizer's own.
        optimizer_no_decay: What isn't decayed: ``"norm"``, ``"bias"``, ``"embedding"`` and patterns
            of names, see :func:`~lightning_practices.optim.decayed_weights`.
        optimizer_layer_decay: What the rate is multiplied by from layer to layer.
        **kwargs: Passed on.

    Raises:
        ValueError: If an argument is none that there can be. When the fit starts, if a pattern
            matches no parameter, or the strategy is FSDP1, which flattens parameters.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reject_twin(cls)

    def __init__(
        self,
        *args: Any,
        optimizer: OptimizerName | Callable[[Iterable[Any]], Optimizer] = "adamw",
        optimizer_lr: float | None = None,
        optimizer_weight_decay: float | None = None,
        optimizer_no_decay: Sequence[str] = KINDS,
        optimizer_layer_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_optimizer(optimizer)
        check_groups(optimizer_weight_decay, optimizer_layer_decay, optimizer_lr)
        self._optimizer = optimizer
        self._optimizer_lr = optimizer_lr
        self._optimizer_groups: dict[str, Any] = {
            "weight_decay": optimizer_weight_decay,
            "no_decay": optimizer_no_decay,
            "layer_decay": optimizer_layer_decay,
            "lr": optimizer_lr,
        }

    def make_optimizer(self, module: nn.Module | None = None) -> Optimizer:
        """Return the optimizer of a part of the module, for a ``configure_optimizers`` of yours.

        Args:
            module: The part. Default: the whole.
        """
        module = self if module is None else module
        groups = parameter_groups(module, **self._optimizer_groups)
        if callable(self._optimizer):  # the groups have what is given
            return make_optimizer(self._optimizer, groups)
        torchs = {"fused": None} if self._clips_unfused() or _has_sparse(module) else {}
        return make_optimizer(self._optimizer, groups, lr=self._optimizer_lr, **torchs)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.make_optimizer()

    def _clips_unfused(self) -> bool:
        """Say whether Lightning would refuse to clip for a fused optimizer, or has to unscale."""
        trainer = self._trainer
        plugin = None if trainer is None else trainer.precision_plugin
        if trainer is None or not isinstance(plugin, MixedPrecision):
            return False
        return plugin.scaler is not None or bool(trainer.gradient_clip_val)


def _has_sparse(module: nn.Module) -> bool:
    kinds = nn.Embedding, nn.EmbeddingBag
    return any(isinstance(part, kinds) and part.sparse for part in module.modules())
