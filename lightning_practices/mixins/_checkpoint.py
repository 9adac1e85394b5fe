"""The best weights on disk as a part of the module."""

from copy import deepcopy
from typing import Any
from weakref import WeakSet

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_practices.callbacks import BestCheckpoint
from lightning_practices.mixins._practice import MonitorMixin, configured

_ARGUMENTS = (  # in `state_key` are the monitor and how often to save
    "state_key", "dirpath", "filename", "save_last", "save_top_k", "save_weights_only"
)  # fmt: skip
_OF_MODULES: WeakSet[ModelCheckpoint] = WeakSet()  # that mixins have brought


class CheckpointMixin(MonitorMixin):
    """Save the best and the last weights of every fit, for ``ckpt_path="best"`` and ``"last"``.

    List it before the module it extends: ``class Net(CheckpointMixin, BaseNet)``.

    A ``ModelCheckpoint`` of the Trainer with a ``monitor`` is used in place of this one. One
    without a ``monitor`` that you have configured works beside it. The one that each Trainer has by
    default is replaced. With ``Trainer(enable_checkpointing=False)`` nothing is saved.

    Args:
        *args: Passed on.
        checkpoint: ``True`` for a :class:`~lightning_practices.callbacks.BestCheckpoint` by
            ``monitor``; or a ``ModelCheckpoint`` of Lightning's, which has its own ``monitor`` and
            ``mode``; or ``None`` or ``False``, to leave checkpoints to the Trainer.
        **kwargs: Passed on, among them ``monitor`` and ``mode``, see :class:`MonitorMixin`.

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
        """The callback: its ``best_model_path``, ``best_model_score``; ``None`` without one."""
        return self._checkpoint

    @override
    def configure_callbacks(self) -> list[Callback]:
        callbacks = super().configure_callbacks()
        trainer: Any = self._trainer
        if trainer is None or self._checkpoint is None or not trainer.checkpoint_callbacks:
            return callbacks  # without any, the Trainer has enable_checkpointing=False
        found = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]
        theirs = [c for c in found if c not in _OF_MODULES and not _is_default(c)]
        if any(c.monitor is not None for c in theirs):
            return callbacks
        # Lightning would let ours replace all of its type, those that you have configured too.
        trainer.callbacks = [c for c in trainer.callbacks if c not in found]
        return [*callbacks, self._checkpoint, *theirs]


def _is_default(checkpoint: ModelCheckpoint) -> bool:
    """Say whether it is as each Trainer makes one."""
    default = ModelCheckpoint()
    return type(checkpoint) is ModelCheckpoint and all(
        getattr(checkpoint, name) == getattr(default, name) for name in _ARGUMENTS
    )
