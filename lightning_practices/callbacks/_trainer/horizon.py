"""The length of a fit, in optimizer steps and in epochs."""

import math

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

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
    """Return the epochs of the fit; ``None`` if their number isn't known beforehand."""
    epochs = trainer.max_epochs
    return None if epochs is None or epochs == -1 else epochs


def steps_of_fit(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the fit; ``None`` if their number isn't known beforehand.

    Unlike ``Trainer.estimated_stepping_batches`` this takes ``GradientAccumulationScheduler`` into
    account. It can be called in ``configure_optimizers`` and in all later hooks. It loads the
    training data if the Trainer hasn't done so yet. If the fit resumes from a checkpoint, which may
    hold the state of the loader, the Trainer then loads the data again.
    """
    limits = [] if trainer.max_steps == -1 else [trainer.max_steps]
    epochs = epochs_of_fit(trainer)
    if trainer.lightning_module.automatic_optimization and epochs is not None:
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
            if trainer.ckpt_path is not None:
                # Lightning restores a loader's state only while it sets the loader up.
                trainer.fit_loop._combined_loader = None
        batches = trainer.num_training_batches
        if not math.isinf(batches):
            limits.append(sum(math.ceil(batches / _accumulated(trainer, e)) for e in range(epochs)))
    return min(limits, default=None)


def why_unknown(trainer: Trainer) -> str:
    """Return why the length of the fit isn't known beforehand, for an error message."""
    if epochs_of_fit(trainer) is None:
        return "the Trainer's max_epochs is -1"
    if not trainer.lightning_module.automatic_optimization:
        return "under manual optimization the module decides, and the Trainer has no max_steps"
    return "the training data has no length, and the Trainer no max_steps"


def _accumulated(trainer: Trainer, epoch: int) -> int:
    """Return the number of batches per optimizer step in ``epoch``."""
    for scheduler in callbacks_of(trainer, GradientAccumulationScheduler):
        return scheduler.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches
