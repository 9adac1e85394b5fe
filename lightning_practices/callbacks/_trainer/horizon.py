"""How long a fit is going to be, in optimizer steps and in epochs."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def epochs_of_fit(trainer: Trainer) -> int | None:
    """Return the epochs of the fit, ``None`` if that isn't known."""
    epochs = trainer.max_epochs
    return None if epochs is None or epochs == -1 else epochs


def steps_of_fit(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the fit, ``None`` if that isn't known.

    Unlike ``Trainer.estimated_stepping_batches`` it knows ``GradientAccumulationScheduler``. It can
    be asked from ``configure_optimizers`` on; the training data is then loaded a little earlier,
    and not twice, except where a checkpoint may hold the state of its loader.
    """
    limits = [] if trainer.max_steps == -1 else [trainer.max_steps]
    epochs = epochs_of_fit(trainer)
    if trainer.lightning_module.automatic_optimization and epochs is not None:
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
            if trainer.ckpt_path is not None:  # Lightning gives it a state only as it sets it up
                trainer.fit_loop._combined_loader = None
        batches = trainer.num_training_batches
        if not math.isinf(batches):
            limits.append(sum(math.ceil(batches / _accumulated(trainer, e)) for e in range(epochs)))
    return min(limits, default=None)


def why_unknown(trainer: Trainer) -> str:
    """Say why the length of the fit isn't known."""
    if epochs_of_fit(trainer) is None:
        return "the Trainer's max_epochs is -1"
    if not trainer.lightning_module.automatic_optimization:
        return "under manual optimization the module decides, and the Trainer has no max_steps"
    return "the training data has no length, and the Trainer no max_steps"


def _accumulated(trainer: Trainer, epoch: int) -> int:
    """Return how many batches make an optimizer step in ``epoch``."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches
