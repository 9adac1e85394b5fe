"""Running statistics of batch norms for averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_practices.callbacks._recalibrate_batch_norm import RecalibrateBatchNorm
from lightning_practices.callbacks._trainer.others import callbacks_of, set_callbacks


class _Averaging(Protocol):
    @property
    def averaged(self) -> int: ...


class RecalibrateAverages(RecalibrateBatchNorm):
    """Recomputes batch norm statistics at the end of a fit, if weights were averaged.

    ``WeightAveraging`` adds this callback to the Trainer for one fit.

    Args:
        averaging: The callback that averages.
    """

    def __init__(self, averaging: _Averaging) -> None:
        super().__init__()
        self._averaging = averaging

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with _explained():
            super().on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        with _explained():
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._averaging.averaged:
            super().on_train_end(trainer, pl_module)


def add_recalibration(trainer: Trainer, pl_module: LightningModule, averaging: _Averaging) -> None:
    """Add a ``RecalibrateAverages``, if there are batch norms and no ``RecalibrateBatchNorm``."""
    if not callbacks_of(trainer, RecalibrateBatchNorm) and _has_batch_norm(pl_module):
        recalibrate = RecalibrateAverages(averaging)
        set_callbacks(trainer, [*callbacks_of(trainer, Callback), recalibrate])
        recalibrate.setup(trainer, pl_module, "fit")


def warn_of_checkpoints(trainer: Trainer, pl_module: LightningModule) -> None:
    """Warn that checkpoints and early stopping don't see the recomputed statistics."""
    judges = [*callbacks_of(trainer, Checkpoint), *callbacks_of(trainer, EarlyStopping)]
    names = sorted({type(one).__name__ for one in judges})
    if names and _has_batch_norm(pl_module):
        rank_zero_warn(
            "WeightAveraging('swa') recomputes the running statistics of batch norms only when"
            f" training ends, so validations, and thus {' and '.join(names)}, use the averages of"
            " the running statistics, which can be far off: after loading a checkpoint of this fit"
            " call surgery.recalibrate_batch_norm, save the final module by"
            " trainer.save_checkpoint after the fit, or average by 'ema'"
        )


def remove_recalibration(trainer: Trainer) -> None:
    """Remove the ``RecalibrateAverages`` from the Trainer."""
    callbacks = callbacks_of(trainer, Callback)
    set_callbacks(trainer, [one for one in callbacks if not isinstance(one, RecalibrateAverages)])


@contextmanager
def _explained() -> Iterator[None]:
    """Say in an error why the module has to run, and where the argument ``forward`` belongs."""
    try:
        yield
    except (MisconfigurationException, TypeError) as error:
        raise type(error)(
            "WeightAveraging('swa') runs the module on the training set when training ends, to"
            f" recompute the running statistics of batch norms, but {error}. The argument forward"
            " is that of a RecalibrateBatchNorm in the Trainer's callbacks"
        ) from error


def _has_batch_norm(module: nn.Module) -> bool:
    parts = module.modules()
    return any(isinstance(part, _BatchNorm) and part.track_running_stats for part in parts)
