"""The mixin that saves the best and the last weights."""

import os
from copy import deepcopy
from os import PathLike
from typing import Any, TypeGuard
from weakref import WeakSet

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_practices._packages import check_one_package, either
from lightning_practices.callbacks import BestCheckpoint
from lightning_practices.mixins._practice import MonitorMixin, check_constructed, configured

_OF_MODULES: WeakSet[ModelCheckpoint] = WeakSet()  # callbacks that mixins added
_DEFAULTS: WeakSet[ModelCheckpoint] = WeakSet()  # default callbacks of Trainers


class CheckpointMixin(MonitorMixin):
    """Save the best and the last weights of every fit, for ``ckpt_path="best"`` and ``"last"``.

    List the mixin before the class that it extends: ``class Net(CheckpointMixin, BaseNet)``.

    Each Trainer's first fit of the module has a new callback, so it never overwrites or deletes
    the checkpoints of an earlier Trainer. A second fit with the same Trainer continues with the
    same callback. ``Trainer(...).fit(net, ckpt_path="last")`` in a new process finds ``last.ckpt``
    if the callback has a ``dirpath``, or if the Trainer has no logger. Otherwise each run of the
    logger has a new folder, and :class:`~lightning_practices.callbacks.BestCheckpoint` raises an
    error that names the newest checkpoint of the earlier runs. ``ckpt_path="best"`` is for the
    Trainer that ran the fit.

    If the Trainer has a ``ModelCheckpoint`` with a ``monitor``, ``checkpoint=True`` adds no
    callback, and :attr:`checkpoint` is the Trainer's. A ``ModelCheckpoint`` object given as
    ``checkpoint`` works beside the Trainer's. A Trainer's ``ModelCheckpoint`` without a ``monitor``
    that you have configured works beside the mixin's too. The default ``ModelCheckpoint`` of a
    Trainer is replaced. With ``Trainer(enable_checkpointing=False)`` nothing is saved.

    Args:
        *args: Positional arguments for the next base class.
        checkpoint: ``True`` for a :class:`~lightning_practices.callbacks.BestCheckpoint` that uses
            ``monitor`` and ``mode``; or a ``ModelCheckpoint`` object, which has its own ``monitor``
            and ``mode``; or ``None`` or ``False``, to leave checkpoints to the Trainer.
        **kwargs: Keyword arguments for the next base class; ``monitor`` and ``mode`` are among
            them, see :class:`MonitorMixin`.

    Raises:
        MisconfigurationException: When the fit starts, if the Trainer has a ``ModelCheckpoint``
            whose ``state_key`` is that of the given object. At a check, if ``monitor`` was not
            logged.
        TypeError: On subclassing, if bases are of both packages of Lightning.

    Example:
        >>> import os
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import CheckpointMixin
        >>> class Net(CheckpointMixin, BoringModel):
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_loss", self.step(batch))
        >>> module = Net()
        >>> Trainer(max_epochs=1, limit_train_batches=4, accelerator="cpu", logger=False,
        ...         enable_progress_bar=False, enable_model_summary=False).fit(module)
        >>> os.path.basename(module.checkpoint.best_model_path)
        'epoch=0-step=4.ckpt'
    """

    def __init__(
        self, *args: Any, checkpoint: bool | ModelCheckpoint | None = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.set_checkpoint(checkpoint)

    @property
    def checkpoint(self) -> ModelCheckpoint | None:
        """The callback, with ``best_model_path`` and ``best_model_score``; ``None`` if off."""
        return self._checkpoint

    @property
    def trainer(self) -> Trainer:
        """The Trainer, as in Lightning."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        check_constructed(self)
        super(CheckpointMixin, type(self)).trainer.fset(self, trainer)  # type: ignore[attr-defined]
        # Lightning looks for the "last" checkpoint before it calls configure_callbacks, but after
        # it has set the module's Trainer.
        if trainer is None:
            return
        # Seen now, since any run of a Trainer, validation too, gives its default callback a folder.
        _DEFAULTS.update(c for c in trainer.checkpoint_callbacks if _is_default(c))
        if trainer.state.fn == TrainerFn.FITTING:
            self._add_checkpoint(trainer)

    @override
    def configure_callbacks(self) -> list[Callback]:
        callbacks = super().configure_callbacks()
        trainer: Any = self._trainer
        if trainer is None or self._checkpoint not in trainer.callbacks:
            return callbacks
        # Lightning would replace all of the Trainer's ModelCheckpoints by ours, even those that the
        # user configured.
        found = [c for c in trainer.callbacks if isinstance(c, either(ModelCheckpoint))]
        trainer.callbacks = [c for c in trainer.callbacks if c not in found]
        return [*callbacks, *found]

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        trainer: Any = self._trainer
        own = self._checkpoint
        is_fit = trainer is None or trainer.state.fn == TrainerFn.FITTING
        if not is_fit and own is not None and own not in trainer.callbacks:
            # It is for fits alone, and Lightning would warn that it is missing.
            checkpoint.get("callbacks", {}).pop(own.state_key, None)

    def set_checkpoint(self, checkpoint: bool | ModelCheckpoint | None) -> None:
        """Set the callback anew, before the first fit.

        Args:
            checkpoint: As in the constructor.
        """
        folder = os.fspath(checkpoint) if isinstance(checkpoint, str | PathLike) else "checkpoints"
        callback = configured(
            "checkpoint",
            None if checkpoint is False else checkpoint,
            ModelCheckpoint,
            (bool,),
            lambda _: BestCheckpoint(self._monitor, self._mode),
            f"True or checkpoint=BestCheckpoint({self._monitor!r}, dirpath={folder!r})",
        )
        check_one_package(self, callback)
        self._by_default = checkpoint is True
        self._checkpoint = deepcopy(callback)
        self._unused: ModelCheckpoint | None = None  # a copy, made when the first fit starts

    def _add_checkpoint(self, trainer: Any) -> None:
        """Add the callback to a Trainer that doesn't have it yet."""
        is_part = trainer.lightning_module is not self
        # No checkpoint callbacks: enable_checkpointing=False
        if is_part or self._checkpoint is None or not trainer.checkpoint_callbacks:
            return
        if self._checkpoint in trainer.callbacks:
            return
        if self._unused is None:
            self._unused = deepcopy(self._checkpoint)
        else:
            self._checkpoint = deepcopy(self._unused)
        found = [c for c in trainer.callbacks if isinstance(c, either(ModelCheckpoint))]
        theirs = [c for c in found if c not in _OF_MODULES and c not in _DEFAULTS]
        monitored = [c for c in theirs if c.monitor is not None]
        if monitored and self._by_default:
            self._checkpoint = monitored[0]
            rank_zero_info(
                f"CheckpointMixin: the Trainer's {type(monitored[0]).__name__} saves the best"
                f" {monitored[0].monitor}, so checkpoint=True adds no callback"
            )
            return
        if any(c.state_key == self._checkpoint.state_key for c in theirs):
            raise MisconfigurationException(
                f"the Trainer and checkpoint= of {type(self).__name__} both have a"
                f" {self._checkpoint.state_key}, and a checkpoint can hold the state of only one:"
                " remove one"
            )
        _OF_MODULES.add(self._checkpoint)
        others = [c for c in trainer.callbacks if c not in found]
        trainer.callbacks = [*others, self._checkpoint, *theirs]


def _is_default(checkpoint: object) -> TypeGuard[ModelCheckpoint]:
    """Return whether a checkpoint callback is the default one of each Trainer, before any run."""
    kind: Any = type(checkpoint)
    return kind in either(ModelCheckpoint) and vars(checkpoint) == vars(kind())
