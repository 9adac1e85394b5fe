"""The mixin that saves the best and the last weights."""

from copy import deepcopy
from typing import Any
from weakref import WeakSet

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_practices.callbacks import BestCheckpoint
from lightning_practices.mixins._practice import MonitorMixin, configured

_ARGUMENTS = (  # `state_key` contains the monitor and the saving intervals
    "state_key", "dirpath", "filename", "save_last", "save_top_k", "save_weights_only"
)  # fmt: skip
_OF_MODULES: WeakSet[ModelCheckpoint] = WeakSet()  # callbacks that mixins added


class CheckpointMixin(MonitorMixin):
    """Save the best and the last weights of every fit, for ``ckpt_path="best"`` and ``"last"``.

    List the mixin before the class that it extends: ``class Net(CheckpointMixin, BaseNet)``.

    If the Trainer has a ``ModelCheckpoint`` with a ``monitor``, the mixin adds no callback. A
    ``ModelCheckpoint`` without a ``monitor`` that you have configured works beside the mixin's. The
    default ``ModelCheckpoint`` of a Trainer is replaced. With
    ``Trainer(enable_checkpointing=False)`` nothing is saved.

    Args:
        *args: Positional arguments for the next base class.
        checkpoint: ``True`` for a :class:`~lightning_practices.callbacks.BestCheckpoint` that uses
            ``monitor`` and ``mode``; or a ``ModelCheckpoint`` object, which has its own ``monitor``
            and ``mode``; or ``None`` or ``False``, to leave checkpoints to the Trainer.
        **kwargs: Keyword arguments for the next base class; ``monitor`` and ``mode`` are among
            them, see :class:`MonitorMixin`.

    Raises:
        MisconfigurationException: At a check, if ``monitor`` was not logged.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init__(
        self, *args: Any, checkpoint: bool | ModelCheckpoint | None = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        callback = configured(
            "checkpoint",
            checkpoint or None,
            ModelCheckpoint,
            (bool,),
            lambda _: BestCheckpoint(self._monitor, self._mode),
        )
        self._checkpoint = deepcopy(callback)
        if self._checkpoint is not None:
            _OF_MODULES.add(self._checkpoint)

    @property
    def checkpoint(self) -> ModelCheckpoint | None:
        """The callback, with ``best_model_path`` and ``best_model_score``; ``None`` if off."""
        return self._checkpoint

    @override
    def configure_callbacks(self) -> list[Callback]:
        callbacks = super().configure_callbacks()
        trainer: Any = self._trainer
        if trainer is None or self._checkpoint is None or not trainer.checkpoint_callbacks:
            return callbacks  # no checkpoint callbacks: enable_checkpointing=False
        found = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]
        theirs = [c for c in found if c not in _OF_MODULES and not _is_default(c)]
        if any(c.monitor is not None for c in theirs):
            return callbacks
        # Lightning would replace all of the Trainer's ModelCheckpoints by ours, even those that the
        # user configured.
        trainer.callbacks = [c for c in trainer.callbacks if c not in found]
        return [*callbacks, self._checkpoint, *theirs]


def _is_default(checkpoint: ModelCheckpoint) -> bool:
    """Say whether a checkpoint callback is a Trainer's default."""
    default = ModelCheckpoint()
    return type(checkpoint) is ModelCheckpoint and all(
        getattr(checkpoint, name) == getattr(default, name) for name in _ARGUMENTS
    )
