"""The length of a fit, in optimizer steps, epochs and validations."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn

from lightning_practices._names import count
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._types import Interval


def length_of_fit(trainer: Trainer, interval: Interval) -> int | None:
    """Return the steps or epochs of the fit; ``None`` if their number isn't known beforehand."""
    return epochs_of_fit(trainer) if interval == "epoch" else steps_of_fit(trainer)


def part_of_fit(trainer: Trainer, part: int | float, interval: Interval, argument: str) -> int:
    """Return the number of steps or epochs in a part of the fit.

    Args:
        trainer: The Trainer of the fit.
        part: An int is a number of steps or epochs, a float is a share of the fit.
        interval: The unit: ``"step"`` or ``"epoch"``.
        argument: The user's argument, for the error message: ``"WeightAveraging(start=0.5)"``.

    Raises:
        MisconfigurationException: If ``part`` is a share of a fit whose length isn't known
            beforehand.
    """
    if isinstance(part, int) or not part:
        return int(part)
    length = length_of_fit(trainer, interval)
    if length is None:
        raise MisconfigurationException(
            f"{argument} is a share of the fit, but how many {interval}s the fit takes isn't known"
            f" beforehand ({why_unknown(trainer)}): give a number of {interval}s, an int"
        )
    return round(part * length)


def epochs_of_fit(trainer: Trainer) -> int | None:
    """Return the epochs of the fit; ``None`` if their number isn't known beforehand.

    An epoch that ``max_steps`` cuts short counts. For when to call it see :func:`steps_of_fit`.
    """
    limit = _max_epochs(trainer)
    if trainer.max_steps == -1 or math.isinf(_batches(trainer)):
        return limit
    steps, epoch = _steps_before_epoch(trainer), _open_epoch(trainer)
    for taken in _steps_by_epoch(trainer):
        if steps >= trainer.max_steps or epoch == limit:
            break
        steps, epoch = steps + taken, epoch + 1
    return epoch


def steps_of_fit(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the fit; ``None`` if their number isn't known beforehand.

    These are the steps taken so far, and for each epoch to come the steps of an epoch with the
    present number of batches. So the number changes if an epoch has more or fewer batches than the
    ones before, see :class:`FollowedSteps`.

    Unlike ``Trainer.estimated_stepping_batches`` this takes ``GradientAccumulationScheduler`` into
    account. It can be called in ``configure_optimizers`` and in the hooks up to the first
    ``on_train_epoch_start``, and in each later ``on_train_epoch_start``. It loads the training data
    if the Trainer hasn't done so yet. If the fit resumes from a checkpoint, which may hold the
    state of the loader, the Trainer then loads the data again.
    """
    limits = [] if trainer.max_steps == -1 else [trainer.max_steps]
    epochs = _max_epochs(trainer)
    if epochs is not None and not math.isinf(_batches(trainer)):
        left = islice(_steps_by_epoch(trainer), max(epochs - _open_epoch(trainer), 0))
        limits.append(_steps_before_epoch(trainer) + sum(left))
    return min(limits, default=None)


class FollowedSteps:
    """The optimizer steps of a fit, for callbacks that follow a changed number.

    Epochs may differ in length, as with ``reload_dataloaders_every_n_epochs`` and data that grow.

    Args:
        effect: What the callback does if the number changes, for the warning.
    """

    def __init__(self, effect: str) -> None:
        self.steps: int | None = None
        self._effect = effect
        self._has_warned = False

    def begin(self, trainer: Trainer) -> int | None:
        """Return the steps of the fit. Call this in ``on_train_start``."""
        self.steps = steps_of_fit(trainer)
        self._has_warned = False
        return self.steps

    def have_changed(self, trainer: Trainer) -> bool:
        """Say whether the number has changed, and warn at the first change of the fit.

        Call this in ``on_train_epoch_start``.
        """
        before, self.steps = self.steps, steps_of_fit(trainer)
        if before == self.steps:
            return False
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"the epochs of this fit differ in length: as epoch {trainer.current_epoch} has"
                f" {trainer.num_training_batches} batches and the epochs before had others, the fit"
                f" takes {self.steps} optimizer steps rather than {before}: {self._effect}"
            )
        return True


def checks_of_fit(trainer: Trainer) -> int | None:
    """Return the validations of the fit; ``None`` if their number isn't known beforehand.

    Without validation these are the epochs, at whose ends training steps may log values too. Call
    this in ``on_train_start`` or later.
    """
    epochs = epochs_of_fit(trainer)
    if epochs is None or not runs_validation(trainer):
        return epochs
    batches, interval = trainer.num_training_batches, trainer.val_check_batch
    every = trainer.check_val_every_n_epoch
    if interval is None or math.isinf(batches):
        return None  # by time, or within epochs of unknown length
    if every is None:
        return int(epochs * batches // interval)
    within = 1 if math.isinf(interval) else int(batches // interval)
    return epochs // every * within


def runs_validation(trainer: Trainer) -> bool:
    """Return whether the fit validates: not with empty dataloaders, once they have been set up."""
    batches = trainer.num_val_batches
    return trainer.enable_validation and (not batches or sum(batches) > 0)


def warn_if_too_short(
    trainer: Trainer, length: int | None, needed: int, unit: str, consequence: str
) -> None:
    """Warn of a fit that is too short for a setting, see :func:`too_short`."""
    if (message := too_short(trainer, length, needed, unit, consequence)) is not None:
        rank_zero_warn(message)


def too_short(
    trainer: Trainer, length: int | None, needed: int, unit: str, consequence: str
) -> str | None:
    """Return a message if a fit is too short for a setting, except for ``fast_dev_run``.

    Args:
        trainer: The Trainer of the fit.
        length: The length of the fit; ``None`` if it isn't known beforehand.
        needed: The least length at which the setting has its effect.
        unit: The unit of both, in the singular: ``"epoch"``.
        consequence: The end of the message: what needs the length, what happens without, and the
            remedy.
    """
    is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]
    if length is None or length >= needed or is_trial:
        return None
    return f"the fit has {count(length, unit)}, and {consequence}"


def why_unknown(trainer: Trainer) -> str:
    """Return why the length of the fit isn't known beforehand, for an error message."""
    if _max_epochs(trainer) is None:
        return "the Trainer's max_epochs is -1"
    if not trainer.lightning_module.automatic_optimization:
        return "under manual optimization the module decides, and the Trainer has no max_steps"
    return "the training data has no length, and the Trainer no max_steps"


def _max_epochs(trainer: Trainer) -> int | None:
    epochs = trainer.max_epochs
    return None if epochs is None or epochs == -1 else epochs


def _batches(trainer: Trainer) -> int | float:
    """Return the batches of an epoch; infinity if they don't tell the number of steps."""
    if not trainer.lightning_module.automatic_optimization:
        return math.inf
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
        if trainer.ckpt_path is not None:
            # Lightning restores a loader's state only while it sets the loader up.
            trainer.fit_loop._combined_loader = None
    return trainer.num_training_batches


def _steps_by_epoch(trainer: Trainer) -> Iterator[int]:
    """Yield the optimizer steps of the present epoch and of each later one, without end."""
    epoch = _open_epoch(trainer)
    while True:
        yield math.ceil(trainer.num_training_batches / _accumulated(trainer, epoch))
        epoch += 1


def _open_epoch(trainer: Trainer) -> int:
    """Return the index of the first epoch that isn't over.

    ``Trainer.current_epoch`` is the one before, if a checkpoint was saved at the end of an epoch.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


def _steps_before_epoch(trainer: Trainer) -> int:
    """Return the optimizer steps taken before the first epoch that isn't over."""
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    if not loop.restarting or progress.started == progress.processed:
        return trainer.global_step  # an epoch is about to start
    # Resumed within an epoch.
    optimizer = loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    return trainer.global_step - optimizer.step.current.completed


def _accumulated(trainer: Trainer, epoch: int) -> int:
    """Return the number of batches per optimizer step in ``epoch``."""
    for scheduler in callbacks_of(trainer, GradientAccumulationScheduler):
        return scheduler.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches
