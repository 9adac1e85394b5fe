"""Early stopping that restores the best weights."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_practices._arguments import check_names, check_number, check_whole
from lightning_practices.callbacks._early_stopping.arguments import (
    check_flags,
    check_modes,
    check_single,
    each,
)
from lightning_practices.callbacks._early_stopping.checks import check_trainer, warn_of_others
from lightning_practices.callbacks._early_stopping.patience import (
    PATIENCE,
    reached_minimum,
    tell_of_patience,
)
from lightning_practices.callbacks._early_stopping.retrain_for import RetrainFor
from lightning_practices.callbacks._early_stopping.validated import as_validated
from lightning_practices.callbacks._early_stopping.verdict import (
    forget_values,
    forget_verdict,
    judge,
    warn_if_not_finite,
)
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.best_weights import BestWeights
from lightning_practices.callbacks._trainer.horizon import steps_of_fit
from lightning_practices.callbacks._trainer.logs import Missing, MonitoredValues
from lightning_practices.callbacks._trainer.modes import Watched
from lightning_practices.callbacks._trainer.others import callbacks_of, refuse_finetuning_scheduler
from lightning_practices.callbacks._types import Mode

_CHECKPOINT_KEY = "early_stopping_weights"


class EarlyStopping(PracticeCallback, LightningEarlyStopping):
    """Stop training once the monitored value no longer improves, and restore the best weights.

    At each check that improves on the best value by more than ``min_delta`` the state of the module
    is copied to CPU memory, buffers such as running statistics included. After ``patience`` checks
    in a row without improvement training stops. When training ends, by this callback,
    ``max_epochs``, ``max_steps``, ``max_time`` or Ctrl-C, the best state is restored in place. Any
    other exception leaves the weights unchanged: call :meth:`restore` to get the best weights.

    The arguments and the checks are those of Lightning's ``EarlyStopping``, with these differences:

    - The monitored value is averaged over all ranks before it is checked, so that all ranks keep
      weights, stop and restore at the same check.
    - Before ``min_epochs`` and ``min_steps`` are reached, no check stops training. Lightning would
      stop once they are reached; here the first check after them decides, so an improvement in
      between lets training continue.
    - Only new values are checked. If neither validation nor the training epoch has logged the
      value since the last check, there is no check. Lightning would check the old value again, and
      count it as a check without improvement.
    - If a value that reaches ``stopping_threshold`` is the best, it is recorded as the best.
    - With :class:`WeightAveraging` the best weights are the validated averages.
    - A resumed fit keeps the count of checks without improvement, the best value and the best
      weights. It uses the ``patience`` given now. So does a further fit of the same Trainer. Any
      other fit begins with no best value, so one callback serves all folds of a cross-validation.
    - Several values can be monitored. Training stops once none of them has improved for
      ``patience`` checks, each compared with its own best value. The best weights, ``best_epoch``,
      ``best_step``, ``best_score`` and ``wait_count`` are those of the first value. To stop as soon
      as one of the values no longer improves, use several callbacks, and set
      ``restore_best_weights=False`` for all but one.

    **Memory and time.** The copy takes as much CPU memory as the state, pinned if the module is on
    a GPU. Later improvements reuse this memory. Once the best weights have been restored, a copy of
    the last state takes as much memory again. The host doesn't wait while a GPU copies, and no
    later step can overwrite tensors that are being copied.

    **Sharded weights.** Under ``ModelParallelStrategy`` (FSDP2, tensor parallelism) each rank keeps
    its own shards. ``FSDPStrategy`` and ``DeepSpeedStrategy`` raise an error, unless
    ``restore_best_weights`` is ``False``.

    **Checkpoints** hold the best weights, which are written only once if they are also the current
    weights. In a checkpoint that is saved after the best weights were restored, ``state_dict``
    holds the best weights. Even then ``Trainer.fit(ckpt_path=...)`` continues from the last
    weights, since the optimizer's state belongs to them. On loading, each copy of the weights
    passes through the module's ``on_load_checkpoint``. Distributed checkpoints, the default of
    ``ModelParallelStrategy``, are an exception: they hold only the current weights, and a warning
    is shown.

    **The length of training** that early stopping finds, ``best_step``, is a hyperparameter.
    :class:`RetrainFor` uses it to train a new module on all data.

    Source: "Early stopping", lectures S0 and S2 to S4; Prechelt, Early stopping - but when?, 1998.

    Args:
        monitor: Name of the logged value to monitor, or several names.
        min_delta: A change counts as an improvement if it is larger than this. One number
            for all values, or one number for each value.
        patience: The number of checks in a row without improvement that stops training. Lightning's
            default is 3, which ends most fits before a plateau schedule has divided the rate once.
            Since the best weights are restored, more patience costs only time.
        verbose: Whether to log each improvement and the reason to stop.
        mode: Direction in which the value improves: ``"min"`` if lower is better, ``"max"`` if
            higher is better. One mode for all values, or one mode for each value.
        strict: Whether to raise if ``monitor`` is never logged. If ``False``, checks begin once all
            values have been logged.
        check_finite: Whether to stop, with a warning, once a value is infinite or nan.
        stopping_threshold: A value that is good enough to stop at once; only for a single
            ``monitor``.
        divergence_threshold: A value that is bad enough to stop at once; only for a single
            ``monitor``.
        check_on_train_epoch_end: Whether to check at the end of each training epoch rather than of
            each validation. Default: ``True`` if validation runs exactly once per epoch; otherwise
            at the end of either, whichever has logged the values.
        log_rank_zero_only: Whether only rank 0 logs.
        restore_best_weights: Whether to keep the best weights, and to restore them when training
            ends.

    Attributes:
        best_epoch: The epoch of the best value, counted from 0; ``None`` before the first value.
        best_step: The optimizer steps taken when the best value was seen, which is the length of
            training to report as a hyperparameter.
        fit_steps: The optimizer steps that the fit takes if it isn't stopped; ``None`` if unknown.

    Raises:
        MisconfigurationException: When ``Trainer.fit`` starts, if weights are to be restored, and
            the strategy is FSDP1 or DeepSpeed, the Trainer has Lightning's ``WeightAveraging``, a
            second ``EarlyStopping`` restores weights, or the kept weights no longer fit the module.
            After the first validation or epoch, if ``strict`` is ``True`` and ``monitor`` has not
            been logged.
        TypeError: If the Trainer and the module are of different packages of Lightning.
        ValueError: If ``monitor`` is empty or has a name twice, ``mode`` or ``min_delta`` is a list
            of another length than ``monitor``, or a threshold is given for several values.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import EarlyStopping
        >>> class Net(BoringModel):
        ...     def validation_step(self, batch, batch_idx):  # a loss that rises after epoch 2
        ...         self.log("val_loss", abs(self.current_epoch - 2.0))
        >>> stopping = EarlyStopping("val_loss", patience=3)
        >>> trainer = Trainer(max_epochs=20, limit_train_batches=4, limit_val_batches=1,
        ...                   accelerator="cpu", callbacks=[stopping], logger=False,
        ...                   enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> trainer.fit(Net())
        >>> trainer.current_epoch, stopping.best_epoch, stopping.best_step
        (6, 2, 12)
    """

    def __init__(
        self,
        monitor: str | Sequence[str],
        min_delta: float | Sequence[float] = 0.0,
        patience: int = PATIENCE,
        verbose: bool = False,
        mode: Mode | Sequence[Mode] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        restore_best_weights: bool = True,
    ) -> None:
        names = check_names("monitor", [monitor] if isinstance(monitor, str) else monitor)
        check_single(names, stopping_threshold, divergence_threshold)
        modes = check_modes(mode, names)
        deltas = [check_number("min_delta", d, ge=0) for d in each(min_delta, names, "min_delta")]
        patience = check_whole("patience", patience, 0)
        check_flags(
            verbose=verbose, strict=strict, check_finite=check_finite,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only, restore_best_weights=restore_best_weights,
        )  # fmt: skip
        shared: Any = {"patience": patience, "strict": strict, "check_finite": check_finite}
        super().__init__(
            monitor=names[0],
            min_delta=deltas[0],
            verbose=verbose,
            mode=modes[0],
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
            **shared,
        )
        self._state_key = super().state_key  # made once, as Lightning reads it at each hook
        # The Trainer doesn't run these callbacks. Each checks one value, and holds its best value
        # and count.
        self._others = [
            LightningEarlyStopping(monitor=name, min_delta=delta, mode=mode, **shared)
            for name, delta, mode in zip(names[1:], deltas[1:], modes[1:], strict=True)
        ]
        self.restore_best_weights = restore_best_weights
        self._on_train_epoch_end = check_on_train_epoch_end
        self._values = self._monitored(None)
        self._reset()

    @override
    def _reset(self) -> None:
        for one in (self, *self._others):
            forget_values(one)
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.fit_steps: int | None = None
        self._weights = BestWeights(f"EarlyStopping(monitor={self.monitor!r})")
        self._restored = False  # whether this fit has restored the best weights

    @override
    def _watched(self) -> list[Watched]:
        return [(one.monitor, one.mode) for one in (self, *self._others)]

    def restore(self, pl_module: LightningModule) -> None:
        """Load the best weights into the module, if there are any.

        Raises:
            MisconfigurationException: If the best weights belong to another module.
        """
        if not self._weights:
            return
        self._weights.give_back(pl_module)
        self._restored = True
        rank_zero_info(
            f"EarlyStopping: the module has the best weights, of epoch {self.best_epoch}, step"
            f" {self.best_step} ({self.monitor}={self.best_score.item():.6g})"
        )

    def refuse_others(self, trainer: Trainer) -> None:
        """Raise ``MisconfigurationException`` beside callbacks of finetuning-scheduler."""
        refuse_finetuning_scheduler(trainer, self, "early_stopping")

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.refuse_others(trainer)
            warn_of_others(trainer, self.monitor)
            if self._weights.are_in(pl_module):
                self._refuse_retraining(trainer, pl_module)
        self._check_on_train_epoch_end = self._on_train_epoch_end
        super().setup(trainer, pl_module, stage)  # chooses if it is None
        if stage == "fit":
            self._weights.drop_last()
            asked = self._on_train_epoch_end is not None or self._check_on_train_epoch_end
            self._values = self._monitored(self._check_on_train_epoch_end if asked else None)
        self._restored = False
        if self.restore_best_weights and stage == "fit":
            rivals = [one for one in callbacks_of(trainer, EarlyStopping) if one is not self]
            check_trainer(
                trainer, self.monitor, [one.monitor for one in rivals if one.restore_best_weights]
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._weights.start(pl_module)
        self.fit_steps = steps_of_fit(trainer)
        forget_verdict(self)  # that of a checkpoint, or of an earlier fit of the same Trainer
        if self._weights:
            self._refuse_retraining(trainer, pl_module)
        if self._checks(trainer):
            self._values.at_start(trainer)
            tell_of_patience(trainer, self.patience, bool(self._check_on_train_epoch_end))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checks(trainer):
            self._check(trainer, self._values.at_validation_end(trainer))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checks(trainer):
            self._check(trainer, self._values.at_train_epoch_end(trainer))

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fit_steps = steps_of_fit(trainer)  # epochs may differ in length

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore(pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._restored:  # resumed at its end, without on_train_end
            self.restore(pl_module)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # After Ctrl-C Lightning ends training without on_train_end.
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == TrainerFn.FITTING:
            self.restore(pl_module)

    @property
    @override
    def state_key(self) -> str:
        return self._state_key

    @override
    def state_dict(self) -> dict[str, Any]:
        state = {
            **super().state_dict(),
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
            "fit_steps": self.fit_steps,
        }
        if self._values.new:
            state["new"] = dict(self._values.new)
        if self._others:
            state["others"] = {other.state_key: other.state_dict() for other in self._others}
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.best_epoch = state_dict.get("best_epoch")
        self.best_step = state_dict.get("best_step")
        self.fit_steps = state_dict.get("fit_steps")
        self._values.new = dict(state_dict.get("new", {}))
        others = state_dict.get("others", {})
        for other in self._others:
            if other.state_key in others:  # otherwise the value is new in this fit
                other.load_state_dict(others[other.state_key])
        for one in (self, *self._others):
            one.patience = patience

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._weights:
            return
        kept = self._weights.save(trainer, pl_module, checkpoint, self.best_step)
        if kept:
            checkpoint.setdefault(_CHECKPOINT_KEY, {})[self.state_key] = kept

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if not self._takes_state(trainer):
            return
        kept = checkpoint.get(_CHECKPOINT_KEY, {}).get(self.state_key, {})
        self._weights.load(trainer, pl_module, checkpoint, kept, self.restore_best_weights)
        state = checkpoint["callbacks"].get(self.state_key)
        lost = self.restore_best_weights and not self._weights and trainer.state.fn == "fit"
        if lost and state and state["best_score"].isfinite():
            rank_zero_warn(
                f"the checkpoint holds the best {self.monitor}, {state['best_score'].item():.6g},"
                " but not its weights: EarlyStopping gives weights back only once a better value is"
                " seen"
            )

    def _monitored(self, on_train_epoch_end: bool | None) -> MonitoredValues:
        missing: Missing = "error" if self.strict else "warning" if self.verbose else "ignore"
        options: Any = {"on_train_epoch_end": on_train_epoch_end, "missing": missing}
        names = [one.monitor for one in (self, *self._others)]
        return MonitoredValues(names, "EarlyStopping", **options)

    @staticmethod
    def _checks(trainer: Trainer) -> bool:
        # RetrainFor fixes the length of its fit, so this callback doesn't check there.
        return not (trainer.fast_dev_run or callbacks_of(trainer, RetrainFor))  # type: ignore[attr-defined]

    def _check(self, trainer: Trainer, new: dict[str, Tensor] | None) -> None:
        """Check the new values, which are the same on all ranks, so that all ranks stop at once."""
        if new is None:
            return
        values = [new[one.monitor] for one in (self, *self._others)]
        improved = self._improves(values[0])
        if improved:
            self._keep(trainer)
        should_stop, reason = judge((self, *self._others), values)
        if improved:  # Lightning doesn't update these when a threshold is reached
            self.best_score, self.wait_count = values[0], 0
        if should_stop and not reached_minimum(trainer):
            # Lightning would stop once the minimum is reached, even if a later check improves.
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            return
        if should_stop:
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason
            warn_if_not_finite(trainer, (self, *self._others), values)
        if reason and self.verbose:
            self._log_info(trainer, reason, self.log_rank_zero_only)

    def _improves(self, current: Tensor) -> bool:
        if self.check_finite and not current.isfinite():
            return False
        return bool(self.monitor_op(current - self.min_delta, self.best_score.to(current.device)))

    def _keep(self, trainer: Trainer) -> None:
        if self.restore_best_weights:
            with as_validated(trainer):
                self._weights.keep(trainer.lightning_module)
        self.best_epoch = trainer.current_epoch
        self.best_step = trainer.global_step

    def _refuse_retraining(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if callbacks_of(trainer, RetrainFor):
            raise MisconfigurationException(
                f"RetrainFor trains a new module, but this {type(pl_module).__name__} was trained"
                f" before, and EarlyStopping(monitor={self.monitor!r}) holds its best weights: make"
                " a new module"
            )
