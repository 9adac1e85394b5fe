"""The callback that saves the best and the last weights."""

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from lightning_practices.callbacks._trainer.ranks import mean_over_ranks
from lightning_practices.callbacks._types import Mode


class BestCheckpoint(ModelCheckpoint):
    """Save the best and the last weights, as Lightning's ``ModelCheckpoint`` does.

    ``Trainer.test(ckpt_path="best")`` then tests the weights with the best value of ``monitor``,
    and ``Trainer.fit(ckpt_path="last")`` resumes from the last check. This callback differs from
    ``ModelCheckpoint(monitor=..., save_last=True)``:

    - ``last.ckpt`` is saved at each check. Lightning 2.6 saves it only if the value is the best so
      far, so a killed fit would resume from that earlier step.
    - A resumed fit keeps the best value, even if it saves to a new folder. Lightning forgets the
      best value when the folder changes, as it does with each run of a logger, and the next value
      would then count as the best.
    - ``fit(ckpt_path="last")`` in a new process raises an error if each run of the logger has a new
      folder and earlier runs have a ``last.ckpt``. The error names the newest. Lightning would
      train from the start. With a ``dirpath``, or without a logger, the folder stays the same and
      the fit resumes.
    - Under ``fast_dev_run`` nothing is saved. Lightning would save ``last.ckpt`` when training
      ends.
    - The value is averaged over all ranks. :class:`EarlyStopping` averages it too, so both
      callbacks find the same best step.

    Args:
        monitor: Name of the logged value that decides which weights are the best.
        mode: Direction in which the value improves: ``"min"`` if lower is better, ``"max"`` if
            higher is better.
        dirpath: Folder of the checkpoints. Default: the logger's folder, or ``default_root_dir``
            without a logger.
        filename: Name of the best checkpoint, in which ``{epoch}``, ``{step}`` and logged values
            are filled in. Default: ``"{epoch}-{step}"``.

    Raises:
        MisconfigurationException: If ``mode`` is neither ``"min"`` nor ``"max"``. On
            ``ckpt_path="last"``, as above. At a check, if ``monitor`` was not logged.
    """

    def __init__(
        self,
        monitor: str,
        mode: Mode = "min",
        *,
        dirpath: str | Path | None = None,
        filename: str | None = None,
    ) -> None:
        super().__init__(dirpath, filename, monitor, mode=mode, save_last=True)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning would save last.ckpt
            super().on_train_end(trainer, pl_module)

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        found: set[str] = super()._find_last_checkpoints(trainer)
        if found or self.dirpath is not None or not trainer.loggers:
            return found
        logger = trainer.loggers[0]
        runs = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)
        earlier = runs.glob(f"*/checkpoints/{self.CHECKPOINT_NAME_LAST}*{self.FILE_EXTENSION}")
        newest = max(earlier, key=lambda path: path.stat().st_mtime, default=None)
        if newest is not None:
            raise MisconfigurationException(
                'ckpt_path="last" finds no checkpoint, as this run of the logger has a new folder,'
                f" {runs}/version_{logger.version}: to resume the newest earlier run give"
                f' ckpt_path="{newest}", or always give BestCheckpoint a dirpath; to train from the'
                " start give no ckpt_path"
            )
        return found

    @override
    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        values = super()._monitor_candidates(trainer)
        if self.monitor in values:
            values[self.monitor] = mean_over_ranks(trainer, values[self.monitor])
        return values

    @override
    def _save_topk_checkpoint(self, trainer: Trainer, *args: Any) -> None:
        super()._save_topk_checkpoint(trainer, *args)
        # Lightning then saves `last.ckpt`, but only if `_last_global_step_saved` is this step.
        self._last_global_step_saved = trainer.global_step
