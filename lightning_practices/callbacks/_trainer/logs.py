"""Logging: whether to log at a step, and the monitored value that a loop has logged."""

from collections.abc import Mapping

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.ranks import mean_over_ranks


class ReadsLogs(Callback):
    """Base class of callbacks that read logged values even if the Trainer has no logger."""


def logs_now(trainer: Trainer) -> bool:
    """Say whether values are logged at this step, and a logger or callback reads them."""
    if not trainer.loggers and not callbacks_of(trainer, ReadsLogs):
        return False
    return trainer._logger_connector.should_update_logs


def log_numbers(pl_module: LightningModule, numbers: Mapping[str, float]) -> None:
    """Log numbers by name, without waiting for the device.

    ``LightningModule.log`` copies a number to the device, which waits.
    """
    values = {name: torch.tensor(number, device="cpu") for name, number in numbers.items()}
    pl_module.log_dict(values)


class MonitoredValue:
    """A logged value, read at the end of each validation or training epoch that has logged it.

    ``trainer.callback_metrics`` can't be used for this: it also holds the values of earlier loops.
    Make a new object when monitoring begins, and call both of its methods in their hooks, on every
    rank.

    Args:
        name: The name under which the value is logged.
        watcher: The subject of the error message: ``"the plateau schedule"``.
    """

    def __init__(self, name: str, watcher: str) -> None:
        self.name = name
        self._watcher = watcher
        self._was_logged = False
        self._has_validated = False

    def at_validation_end(self, trainer: Trainer) -> float | None:
        """Return the value's mean over ranks; ``None`` if this validation hasn't logged it.

        The result is ``None`` outside of ``Trainer.fit`` and in the sanity check too.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return None
        self._has_validated = True
        return self._read(trainer)

    def at_train_epoch_end(self, trainer: Trainer) -> float | None:
        """Return the value's mean over ranks; ``None`` if this training epoch hasn't logged it.

        Raises:
            MisconfigurationException: If the value has never been logged, although a validation has
                run or validation is off.
        """
        value = self._read(trainer)
        is_due = self._has_validated or not trainer.enable_validation
        if is_due and not self._was_logged:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise MisconfigurationException(
                f"{self._watcher} watches {self.name!r}, but neither validation nor the training"
                f" steps of a whole epoch (on_epoch=True) have logged it; logged are: {logged}"
            )
        return value

    def _read(self, trainer: Trainer) -> float | None:
        value = trainer._logger_connector.metrics["callback"].get(self.name)
        if value is None:
            return None
        self._was_logged = True
        return mean_over_ranks(trainer, value.squeeze()).item()
