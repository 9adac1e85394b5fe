"""The callback that saves the best and the last weights."""

from pathlib import Path
from typing import Any, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from lightning_practices._arguments import check_choice, check_name, check_path
from lightning_practices.callbacks._early_stopping import RetrainFor
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.horizon import runs_validation
from lightning_practices.callbacks._trainer.logs import MonitoredValues
from lightning_practices.callbacks._trainer.others import callbacks_of, refuse_finetuning_scheduler
from lightning_practices.callbacks._types import Mode

_STATE = (  # the attributes of ModelCheckpoint that a fit changes
    "best_k_models", "best_model_path", "best_model_score", "current_score",
    "kth_best_model_path", "kth_value", "last_model_path",
    "_last_checkpoint_saved", "_last_global_step_saved",
)  # fmt: skip


class BestCheckpoint(PracticeCallback, ModelCheckpoint):
    """Save the best and the last weights, as Lightning's ``ModelCheckpoint`` does.

    ``Trainer.test(ckpt_path="best")`` then tests the weights with the best value of ``monitor``,
    and ``Trainer.fit(ckpt_path="last")`` resumes from the last check. This callback differs from
    ``ModelCheckpoint(monitor=..., save_last=True)``:

    - ``last.ckpt`` is saved at each check. Lightning 2.6 saves it only if the value is the best so
      far, so a killed fit would resume from that earlier step.
    - A resumed fit keeps the best value, even if it saves to a new folder. Lightning forgets the
      best value when the folder changes, as it does with each run of a logger, and the next value
      would then count as the best.
    - A fit of another Trainer begins with no best value, and in that Trainer's folder if no
      ``dirpath`` is given. In Lightning the best value and the folder of the first fit remain.
    - ``fit(ckpt_path="last")`` in a new process raises an error if each run of the logger has a new
      folder and earlier runs have a ``last.ckpt``. The error names the newest. Lightning would
      train from the start. With a ``dirpath``, or without a logger, the folder stays the same and
      the fit resumes.
    - Under ``fast_dev_run`` nothing is saved. Lightning would save ``last.ckpt`` when training
      ends.
    - The value is averaged over all ranks. :class:`EarlyStopping` averages it too, so both
      callbacks find the same best step.

    Source: lecture S4: the saved model is overwritten only if the validation loss has improved.

    Args:
        monitor: Name of the logged value that decides which weights are the best.
        mode: Direction in which the value improves: ``"min"`` if lower is better, ``"max"`` if
            higher is better.
        dirpath: Folder of the checkpoints. Default: the logger's folder, or ``default_root_dir``
            without a logger.
        filename: Name of the best checkpoint, in which ``{epoch}``, ``{step}`` and logged values
            are filled in. Default: ``"{epoch}-{step}"``.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If ``monitor`` is empty, or ``mode`` is neither ``"min"`` nor ``"max"``.
        MisconfigurationException: On ``ckpt_path="last"``, as above. At a check, if ``monitor`` was
            not logged.

    Example:
        >>> import os
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import BestCheckpoint
        >>> class Net(BoringModel):
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_loss", self.step(batch))
        >>> checkpoint = BestCheckpoint("val_loss", dirpath="checkpoints")
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[checkpoint],
        ...                   enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(Net())
        >>> sorted(os.listdir("checkpoints"))
        ['epoch=0-step=64.ckpt', 'last.ckpt']
    """

    def __init__(
        self,
        monitor: str,
        mode: Mode = "min",
        *,
        dirpath: str | Path | None = None,
        filename: str | None = None,
    ) -> None:
        check_name("monitor", monitor)
        check_choice("mode", mode, get_args(Mode))
        if dirpath is not None:
            dirpath = check_path("dirpath", dirpath, "folder")
        if filename is not None:
            check_name("filename", filename)
        super().__init__(dirpath, filename, monitor, mode=mode, save_last=True)
        self._values = self._monitored()
        self._chosen: str | Path | None = None  # the folder, if Lightning has chosen it

    @override
    def _reset(self) -> None:
        fresh = vars(ModelCheckpoint(monitor=self.monitor, mode=self.mode))
        vars(self).update({name: fresh[name] for name in _STATE})

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            refuse_finetuning_scheduler(trainer, self, "checkpoint")
        is_chosen = self.dirpath == self._chosen
        if stage == "fit" and is_chosen and not self._continues(trainer, pl_module):
            self.dirpath = None  # each run of a logger has its own folder
        has_none = self.dirpath is None
        super().setup(trainer, pl_module, stage)
        if has_none:
            self._chosen = self.dirpath
        if stage == "fit":
            self._values = self._monitored()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.fast_dev_run or callbacks_of(trainer, RetrainFor):  # type: ignore[attr-defined]
            self._values.missing = "ignore"
        elif not runs_validation(trainer):
            self._values.missing = "warning"  # the last weights are saved all the same
        self._values.on_train_epoch_end = self._should_save_on_train_epoch_end(trainer) or None
        self._values.at_start(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        return state | {"new": dict(self._values.new)} if self._values.new else state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})
        self._values.new = dict(state_dict.get("new", {}))

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
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self._values.at_validation_end(trainer)
        self._check(trainer, values, is_time=not self._should_save_on_train_epoch_end(trainer))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self._values.at_train_epoch_end(trainer)
        self._check(trainer, values, is_time=self._should_save_on_train_epoch_end(trainer))

    def _monitored(self) -> MonitoredValues:
        return MonitoredValues([str(self.monitor)], "BestCheckpoint")

    def _check(self, trainer: Trainer, values: dict[str, Tensor] | None, *, is_time: bool) -> None:
        """Save the weights if they are the best, and in any case as the last if it is time to."""
        step = trainer.global_step
        if trainer.fast_dev_run or trainer.sanity_checking or step == 0:  # type: ignore[attr-defined]
            return
        candidates = self._monitor_candidates(trainer) | (values or {})
        if values is not None:
            self._save_topk_checkpoint(trainer, candidates)
        if values is not None or (is_time and self._last_global_step_saved != step):
            self._save_last_checkpoint(trainer, candidates)
