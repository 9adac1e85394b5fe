"""How far a fit is, and what Lightning makes of a fit that ended in the middle of an epoch."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage


def has_ended(trainer: Trainer) -> bool:
    """Say whether all batches of the epoch are trained."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress.current
    return progress.ready == progress.processed and loop._num_ready_batches_reached()


def is_validation_due(trainer: Trainer) -> bool:
    """Say whether validation follows the batch that ends."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress.current
    if not progress.completed < progress.processed == progress.ready or trainer.validating:
        return False
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and loop._should_check_val_fx(fetcher)


def continue_epoch(checkpoint: dict[str, Any]) -> None:
    """Change the progress in a checkpoint so that Lightning continues the epoch.

    A fit that ends in the middle of an epoch, by ``max_steps`` for example, counts this epoch as
    trained. From a checkpoint that is saved then, Lightning would go on with the next epoch.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    for counts in (progress["current"], progress["total"]):
        counts["processed"] = counts["completed"] = counts["started"] - 1


def complete_batch(checkpoint: dict[str, Any]) -> None:
    """Change the progress in a checkpoint that was saved in ``on_train_batch_end``.

    The batch counts as completed, as it does when validation begins. Otherwise Lightning takes the
    validation that follows as done, and the epoch as ended if the batch was its last one.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):
        counts["completed"] = counts["processed"]


def validate_anew(trainer: Trainer) -> None:
    """Let a resumed fit begin with the validation that was interrupted, from its first batch.

    Lightning goes on after the last batch that was validated, and its results hold only the rest.
    If the exception came between two batches, it leaves out the validation.
    """
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    total, current = loop.batch_progress.total, loop.batch_progress.current
    earlier = max(total.completed - current.completed, 0)  # batches of this epoch's validations
    loop.batch_progress.reset_on_run()
    total.reset()
    total.increment_by(earlier)
    loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
