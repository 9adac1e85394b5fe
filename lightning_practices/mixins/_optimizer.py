"""The mixin that configures the optimizer."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from typing_extensions import override

from lightning_practices._packages import either
from lightning_practices.mixins._checkpoint_hooks import Hook, run_after
from lightning_practices.mixins._found_rate import (
    FoundLearningRate,
    RateAttribute,
    load_rate,
    save_rate,
)
from lightning_practices.mixins._practice import PracticeMixin, configured, public_name
from lightning_practices.mixins._signatures import lightning_module
from lightning_practices.optim import Optimizer, OptimizerName


class OptimizerMixin(PracticeMixin):
    """Define ``configure_optimizers``: an optimizer by name, with sensible parameter groups.

    An :class:`~lightning_practices.optim.Optimizer` makes the optimizer and its groups: biases,
    norms and embeddings are not decayed, and with a layer decay the rate falls from layer to layer
    towards the input.

    List the mixin before the class that it extends: ``class Net(OptimizerMixin, BaseNet)``. If
    ``BaseNet`` defines ``configure_optimizers``, that is used, unless you give an ``optimizer``,
    which replaces it; rank 0 logs which optimizer replaces which method. If ``Net`` itself defines
    ``configure_optimizers``, that is used instead. It can return
    ``super().configure_optimizers()`` or, for several optimizers,
    ``[self.make_optimizer(self.generator), self.make_optimizer(self.discriminator)]``.

    The optimizer isn't fused under ``"16-mixed"``, nor under ``"bf16-mixed"`` with the Trainer's
    ``gradient_clip_val``, since Lightning can't clip for a fused optimizer. It isn't fused either
    if an embedding has sparse gradients, which fused optimizers don't support. An optimizer that
    you make yourself, or with an explicit ``fused``, isn't changed.

    **The learning rate that Lightning finds**, by ``Tuner(trainer).lr_find(module)`` or by the
    callback ``LearningRateFinder``, replaces the ``lr`` of the
    :class:`~lightning_practices.optim.Optimizer` from then on. With ``layer_decay`` it is the rate
    of the last layer, and with a schedule the rate that the schedule multiplies. Checkpoints hold
    it, and ``load_from_checkpoint`` loads it, unless you give another ``lr`` than before. If your
    class has an attribute or hyperparameter ``lr`` or ``learning_rate``, the finder sets that as
    well.

    **The attribute** ``lr``, or ``learning_rate``: a number that you assign to it, before a fit or
    after one, is the learning rate of the optimizer too, as in ``self.lr = lr`` in your
    ``__init__`` after ``super().__init__(...)``. It replaces the ``lr`` of an
    :class:`~lightning_practices.optim.Optimizer`, with a warning if that has another. A number that
    your class assigns while a fit runs never reaches the optimizer. A number that ``BaseNet``
    assigns in its ``__init__`` is the rate if the ``Optimizer`` has no ``lr``. So is the
    hyperparameter ``lr`` or ``learning_rate`` of your class, if no such attribute is a number.

    This is for the mixin's optimizer. A ``configure_optimizers`` of ``BaseNet`` or ``Net`` reads
    the found rate from an attribute or hyperparameter of its own.

    Args:
        *args: Positional arguments for the next base class.
        optimizer: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"``, ``"rmsprop"``,
            ``"adam"`` or ``"adamw"``; or an :class:`~lightning_practices.optim.Optimizer`; or
            ``None``, to use the ``configure_optimizers`` of the base class, or ``"adamw"`` if it
            has none.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        ValueError: If the name of the optimizer is unknown. When the fit starts, if a pattern
            matches no parameter, or the parameters are flattened by FSDP1 or partitioned by ZeRO
            stage 3.
        TypeError: On subclassing, if bases are of both packages of Lightning.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> from lightning_practices.mixins import OptimizerMixin
        >>> from lightning_practices.optim import Optimizer
        >>> class Net(OptimizerMixin, LightningModule):
        ...     def __init__(self, **practices):
        ...         super().__init__(**practices)
        ...         self.layer = nn.Linear(4, 2)
        >>> module = Net(optimizer=Optimizer("sgd", lr=0.1, weight_decay=0.01))
        >>> weights, biases = module.configure_optimizers().param_groups
        >>> weights["weight_decay"], biases["weight_decay"]
        (0.01, 0.0)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        hooks: dict[Hook, Any] = {"on_save_checkpoint": save_rate, "on_load_checkpoint": load_rate}
        run_after(cls, PracticeMixin, hooks)
        super().__init_subclass__(**kwargs)  # wraps the hook that saves once more

    def __init__(
        self, *args: Any, optimizer: OptimizerName | Optimizer | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        given = configured(
            "optimizer",
            optimizer,
            Optimizer,
            (str,),
            Optimizer,
            _example(optimizer),
            "for the configure_optimizers of the base class",
        )
        # The class's own configure_optimizers may make an optimizer without the mixin.
        is_ours = given is not None or _owner(type(self)) is OptimizerMixin
        if given is None and _replaced(type(self)) is None:
            given = Optimizer()
        found = self._bring(FoundLearningRate(given) if given is not None and is_ours else None)
        self._found_learning_rate = found
        self._optimizer = given if found is None else found.optimizer  # a copy
        if found is not None:
            found.complete(vars(self), {})  # a class after the mixins has run its __init__

    lr = RateAttribute()
    learning_rate = RateAttribute()

    def make_optimizer(self, module: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return an optimizer for a part of the module, for your own ``configure_optimizers``.

        Args:
            module: The part of the module. Default: the whole module.

        Raises:
            ValueError: If the module was made with ``optimizer=None``, and a base class has a
                ``configure_optimizers``.
        """
        if self._optimizer is None:
            raise ValueError(
                f"{type(self).__name__} was made with optimizer=None, which stands for"
                f" {_shown(_replaced(type(self)))}: give an Optimizer, or make your own in"
                " configure_optimizers"
            )
        if self._found_learning_rate is not None:
            self._found_learning_rate.part = module
            self._found_learning_rate.complete(vars(self), self.hparams)
        module = self if module is None else module
        by_name = isinstance(self._optimizer.name, str)
        if by_name and (self._clips_unfused() or _has_sparse(module)):
            return self._optimizer(module, fused=None)
        return self._optimizer(module)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self._optimizer is None:
            return super().configure_optimizers()
        base = _replaced(type(self))
        if base is not None:
            rank_zero_info(
                f"OptimizerMixin: optimizer={self._optimizer.name!r} replaces {_shown(base)}, which"
                " optimizer=None would keep"
            )
        return self.make_optimizer()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        save_rate(self, checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        load_rate(self, checkpoint)

    def _clips_unfused(self) -> bool:
        """Say whether Lightning has to clip or unscale, which it can't do for a fused optimizer."""
        trainer = self._trainer
        plugin = None if trainer is None else trainer.precision_plugin
        if trainer is None or not isinstance(plugin, either(MixedPrecision)):
            return False
        return plugin.scaler is not None or bool(trainer.gradient_clip_val)


def _example(given: Any) -> str:
    """Return the right form of an optimizer that is given as torch's class or object."""
    kind = given if isinstance(given, type) else type(given)
    if issubclass(kind, torch.optim.Optimizer):
        return f"Optimizer({public_name(kind)}, lr=...)"
    name = getattr(given, "__name__", "")
    function = name if name.isidentifier() else "function"
    return f"Optimizer({function}, lr=...)" if callable(given) else "Optimizer('adamw', lr=1e-3)"


def _has_sparse(module: nn.Module) -> bool:
    kinds = nn.Embedding, nn.EmbeddingBag
    return any(isinstance(part, kinds) and part.sparse for part in module.modules())


def _owner(module: type) -> type:
    """Return the class whose ``configure_optimizers`` Lightning calls, or calls first."""
    order = module.__mro__
    before = order[: order.index(OptimizerMixin)]
    own = [base for base in before if not base.__module__.startswith(f"{__package__}.")]
    return next((base for base in own if "configure_optimizers" in vars(base)), OptimizerMixin)


def _replaced(module: type) -> type | None:
    """Return the class after the mixin that has a ``configure_optimizers``, if one has it."""
    order = module.__mro__
    after = order[order.index(OptimizerMixin) + 1 : order.index(lightning_module(module))]
    return next((base for base in after if "configure_optimizers" in vars(base)), None)


def _shown(base: type | None) -> str:
    return f"{LightningModule.__name__ if base is None else base.__name__}.configure_optimizers"
