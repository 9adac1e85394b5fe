"""Logging: whether to log at a step, and the monitored values that a loop has logged."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_practices._arguments import shown
from lightning_practices.callbacks._trainer.horizon import runs_validation
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.ranks import mean_over_ranks

Missing = Literal["error", "warning", "ignore"]

_NO_VALIDATION = (
    "this fit runs no validation: give it a val_dataloader with batches and the module a"
    " validation_step, watch a value that training logs, or leave this callback out"
)


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


class MonitoredValues:
    """Logged values, read at the end of each validation or training epoch that has logged them.

    ``trainer.callback_metrics`` also holds the values of earlier loops, and what Lightning keeps of
    the present loop is filtered by the present dataloader. So this class reads the loop's results
    itself, those of all dataloaders.

    Make a new object when monitoring begins, and call its methods in their hooks, on every rank.
    The values are due as soon as all of them have been logged in the present epoch, since they
    were due the last time.

    Args:
        names: The names under which the values are logged.
        watcher: The subject of error messages: ``"the plateau schedule"``.
        on_train_epoch_end: Whether the values are due only at the end of a training epoch
            (``True``) or only at the end of a validation (``False``). Default: at both.
        missing: What follows if a value is never logged.

    Attributes:
        new: The values, by name, that have been logged but weren't due yet.
        missing, on_train_epoch_end: See the arguments. They may be changed.
    """

    def __init__(
        self,
        names: Sequence[str],
        watcher: str,
        *,
        on_train_epoch_end: bool | None = None,
        missing: Missing = "error",
    ) -> None:
        self.new: dict[str, Tensor] = {}
        self.missing = missing
        self._names = tuple(names)
        self._watcher = watcher
        self.on_train_epoch_end = on_train_epoch_end
        self._seen: set[str] = set()
        self._has_validated = False
        self._has_warned = False

    def at_start(self, trainer: Trainer) -> None:
        """Warn if a name is one of validation and the fit runs no validation."""
        named = [name for name in self._names if _is_of_validation(name)]
        if named and not runs_validation(trainer):
            self._warn(f"{self._watcher} watches {named[0]!r}, but {_NO_VALIDATION}")

    def at_validation_end(self, trainer: Trainer) -> dict[str, Tensor] | None:
        """Return the mean over ranks of each value by name; ``None`` if they aren't due.

        The result is ``None`` outside of ``Trainer.fit`` and in the sanity check too.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return None
        self._has_validated = True
        self._read(trainer)
        steps = _logged(trainer.fit_loop.epoch_loop._results)
        missing = [name for name in self._unseen() if name not in steps]
        # The training epoch may log the value at its end, but may also go on forever.
        if missing and not trainer.is_last_batch:
            self._warn(
                f"{self._watcher} watches {missing[0]!r}, which this validation hasn't logged"
                f"{_described(missing[0], trainer)}"
            )
        return None if self.on_train_epoch_end is True else self._due()

    def at_train_epoch_end(self, trainer: Trainer) -> dict[str, Tensor] | None:
        """Return the mean over ranks of each value by name; ``None`` if they aren't due.

        Raises:
            MisconfigurationException: If a value has never been logged, although a validation has
                run or validation is off, and ``missing`` is ``"error"``.
        """
        self._read(trainer)
        missing = self._unseen()
        if missing and (self._has_validated or not runs_validation(trainer)):
            message = (
                f"{self._watcher} watches {shown(missing[0])}, but neither validation nor the"
                f" training steps of a whole epoch (on_epoch=True) have logged it"
                f"{_described(missing[0], trainer)}"
            )
            if self.missing == "error":
                raise MisconfigurationException(message)
            self._warn(message)
        if self.on_train_epoch_end is False:
            return None
        due = self._due()
        self.new = {}  # a later epoch has other weights
        return due

    def _warn(self, message: str) -> None:
        if self.missing != "ignore" and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(message)

    def _read(self, trainer: Trainer) -> None:
        results: Any = trainer._results
        logged = _logged(results)
        for name in self._names:
            metric = logged.get(name)
            value = None if metric is None else results._get_cache(metric, on_step=False)
            value = mean_over_ranks(trainer, value)
            if value is not None:
                self.new[name] = value
                self._seen.add(name)

    def _due(self) -> dict[str, Tensor] | None:
        if self.new.keys() != {*self._names}:
            return None
        due, self.new = self.new, {}
        return due

    def _unseen(self) -> list[str]:
        return [name for name in self._names if name not in self._seen]


def _is_of_validation(name: str) -> bool:
    words = re.split(r"[/_.\s-]+", name.lower())
    return not {"val", "valid", "validation"}.isdisjoint((words[0], words[-1]))


def _logged(results: Any) -> dict[str, Any]:
    """Return what a loop has logged for the epoch, of each dataloader, by all of its names."""
    found: dict[str, Any] = {}
    for metric in results.result_metrics:
        if metric.meta.on_epoch and not metric.has_reset:
            found |= dict.fromkeys(results._forked_name(metric, on_step=False), metric)
    return found


def _described(name: str, trainer: Trainer) -> str:
    """Return the end of a message about a value that isn't logged: which are, and what to do."""
    every = trainer.callback_metrics.keys()
    # Of a value that is logged by step and by epoch, Lightning has x, x_step and x_epoch.
    pairs = [{f"{x}_step", f"{x}_epoch"} for x in every]
    forks = {fork for pair in pairs if pair <= every for fork in pair}
    logged = sorted(every - forks)
    text = f"; logged are: {', '.join(logged) or 'none'}"
    loaders = [other for other in logged if other.startswith(f"{name}/dataloader_idx_")]
    if loaders:
        return (
            f"{text}: watch {' or '.join(map(repr, loaders))}, or log {name!r} in"
            " on_validation_epoch_end"
        )
    if name in forks and name.endswith("_step"):
        return f"{text}: {name!r} is the value of single steps, watch {name[:-5] + '_epoch'!r}"
    if name in logged:
        return f"{text}: log {name!r} with on_epoch=True"
    lack = _lack_of_validation(name, trainer)
    if lack and _is_of_validation(name):
        return text + lack
    names = [*logged, *(fork for fork in forks if fork.endswith("_epoch"))]
    nearest = {one.partition("/dataloader_idx_")[0]: one for one in reversed(names)}
    nearest |= {one: one for one in names}
    if near := get_close_matches(name, nearest, n=1):
        return f"{text}: did you mean {nearest[near[0]]!r}?"
    return text + lack


def _lack_of_validation(name: str, trainer: Trainer) -> str:
    """Return the end of a message if there is no validation, or it logs nothing; else nothing."""
    if not runs_validation(trainer):
        return f": {_NO_VALIDATION}"
    if not trainer.fit_loop.epoch_loop.val_loop._results:  # which keep the names of earlier values
        return f"; validation has logged nothing: call self.log({name!r}, ...) in validation_step"
    return ""
