"""Logging: whether a step is one to log at, and the monitored value that a loop has logged."""

from collections.abc import Mapping

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.ranks import mean_over_ranks


class ReadsLogs(Callback):
    """Base of callbacks that read the logged values themselves, so that no logger is needed."""


def logs_now(trainer: Trainer) -> bool:
    """Say whether values are logged at this step, and a logger or callback reads them."""
    if not trainer.loggers and not callbacks_of(trainer, ReadsLogs):
        return False
    return trainer._logger_connector.should_update_logs


def log_numbers(pl_module: LightningModule, numbers: Mapping[str, float]) -> None:
    """Log numbers by their names, without a wait for the device.

    ``LightningModule.log`` makes a tensor on the device of a number, and that waits.
    """
    values = {name: torch.tensor(number, device="cpu") for name, number in numbers.items()}
    pl_module.log_dict(values)


class MonitoredValue:
    """A logged value, read at the end of each validation or training epoch that has logged it.

    ``trainer.callback_metrics`` doesn't serve: it also holds the values of loops long ago. Make a
    new one where the watching begins, and call it at both hooks, on every rank.

    Args:
        name: The name under which the value is logged.
        watcher: What watches it, the subject of the error's sentence: ``"the plateau schedule"``.
    """

    def __init__(self, name: str, watcher: str) -> None:
        self.name = name
        self._watcher = watcher
        self._was_logged = False
        self._has_validated = False

    def at_validation_end(self, trainer: Trainer) -> float | None:
        """Return the mean over all ranks; ``None`` if this validation hasn't logged the value.

        It is ``None`` too outside of ``Trainer.fit``, and after the sanity check.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return None
        self._has_validated = True
        return self._read(trainer)

    def at_train_epoch_end(self, trainer: Trainer) -> float | None:
        """Return the mean over all ranks; ``None`` if this training epoch hasn't logged the value.

        Raises:
            MisconfigurationException: If no validation has logged it either, though one has run or
                none is going to.
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
