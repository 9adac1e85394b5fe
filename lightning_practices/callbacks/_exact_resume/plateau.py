"""The steps of the module's own ``ReduceLROnPlateau`` in a fit that is resumed.

Lightning leaves out the step at the end of the epoch that is resumed in its midst, since it saves
no logged values. It also leaves out the step that follows a checkpoint at once, as it steps after
all hooks in which checkpoints are saved.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.loop import _Loop
from torch import Tensor

from lightning_practices._packages import own_kind
from lightning_practices.callbacks._exact_resume.progress import has_ended, is_validation_due


def monitored_values(trainer: Trainer) -> dict[str, Tensor]:
    """Return the latest values that such schedulers monitor, in CPU memory."""
    values = trainer.callback_metrics
    return {name: values[name].cpu() for name in _monitors(trainer) if name in values}


def due_steps(trainer: Trainer) -> list[int]:
    """Return the indices of the schedulers that step right after the present hook."""
    loop: Any = trainer.fit_loop
    epoch, batch = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
    if epoch.completed < epoch.processed and has_ended(trainer):
        interval, place = "epoch", epoch.completed + 1
    elif batch.completed < batch.processed == batch.ready and not is_validation_due(trainer):
        interval, place = "step", batch.ready
    else:
        return []
    if interval == "step" and loop.epoch_loop._should_accumulate():
        return []
    return [
        index
        for index, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == interval
        and place % config.frequency == 0
        and config.monitor in trainer.callback_metrics
    ]


def go_on(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Restore the monitored values of a checkpoint, and make the steps that were due then."""
    rank = saved["ranks"][trainer.global_rank]
    trainer.callback_metrics.update(rank.get("monitored", {}))  # older checkpoints have none
    for config in (trainer.lr_scheduler_configs[i] for i in saved.get("plateau_steps", ())):
        config.scheduler.step(trainer.callback_metrics[str(config.monitor)])


def let_them_step(trainer: Trainer) -> None:
    """Let Lightning make the step at the end of this epoch, if the values are known."""
    loop = trainer.fit_loop
    known = trainer.callback_metrics
    if loop.restarting and has_ended(trainer) and all(name in known for name in _monitors(trainer)):
        kind: Any = own_kind(loop, _Loop)
        kind.restarting.fset(loop, False)


def _monitors(trainer: Trainer) -> list[str]:
    configs = trainer.lr_scheduler_configs
    return [config.monitor for config in configs if config.reduce_on_plateau and config.monitor]
