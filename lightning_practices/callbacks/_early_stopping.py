"""Early stopping that gives the best weights back."""

import weakref
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._ranks import mean_over_ranks

_CHECKPOINT_KEY = "early_stopping_weights"
_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)


class EarlyStopping(LightningEarlyStopping):
    """Stop once the monitored value has stopped improving, and give the best weights back.

    The state of the module, buffers such as running statistics included, is copied to CPU memory
    at each check that improves on the best value by more than ``min_delta``. After ``patience``
    checks in a row without improvement training stops. Whatever ends it (this, ``max_epochs``,
    ``max_steps``, ``max_time``, Ctrl-C), the module then gets the best state back, in place. Any
    other exception leaves the weights as they are: :meth:`restore` gives the best ones back.

    The arguments are those of Lightning's callback, and so are the checks. What differs:

    - The monitored value is averaged over all ranks before it is judged, so every rank keeps, stops
      and restores at the same check.
    - Before ``min_epochs`` and ``min_steps`` there is no verdict. The first check after them judges
      afresh, so an improvement in between lets training go on.
    - A value that reaches ``stopping_threshold`` counts as the best one if it is.
    - Resuming keeps the count, the best value and the best weights, but not the old ``patience``.

    A checkpoint carries the best weights, once where they are also the current ones. If it is saved
    after they were given back, its ``state_dict`` holds them, and ``Trainer.fit(ckpt_path=...)``
    nonetheless goes on from the last weights, those that the optimizer's state belongs to.

    Source: "Early stopping", lectures S0 and S2 to S4; Prechelt, Early stopping - but when?, 1998.

    Args:
        monitor: Name of the logged value to watch.
        min_delta: Least change that counts as an improvement; a change equal to it doesn't.
        patience: Checks without improvement after which training stops.
        verbose: Whether to log each improvement and the reason to stop.
        mode: Whether the value is to fall, ``"min"``, or to rise, ``"max"``.
        strict: Whether to raise if ``monitor`` was never logged.
        check_finite: Whether to stop once the value is infinite or NaN.
        stopping_threshold: Value at which training stops at once, as good enough.
        divergence_threshold: Value at which training stops at once, as hopeless.
        check_on_train_epoch_end: Whether to check at the end of the training epoch rather than of
            validation. Default: if validation runs exactly once an epoch.
        log_rank_zero_only: Whether only rank 0 logs.
        restore_best_weights: Whether to keep the best weights and to give them back.

    Attributes:
        best_epoch: Epoch, from 0, of the best value; ``None`` before the first.
        best_step: Optimizer steps taken when the best value was seen: the length of training found,
            to be reported as a hyperparameter.

    Raises:
        MisconfigurationException: If ``mode`` is neither. When ``Trainer.fit`` starts, if weights
            are to be restored and the strategy shards them, ``WeightAveraging`` validates others,
            a second such callback is there, or the weights held are another module's.
        RuntimeError: At a check, if ``strict`` and ``monitor`` was not logged.
        TypeError: If the trainer or the module is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        restore_best_weights: bool = True,
    ) -> None:
        super().__init__(
            monitor=monitor,
            min_delta=min_delta,
            patience=patience,
            verbose=verbose,
            mode=mode,
            strict=strict,
            check_finite=check_finite,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
        )
        self.restore_best_weights = restore_best_weights
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self._best: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None  # what restoring the best has overwritten
        self._owner: weakref.ref[LightningModule] | None = None  # the module of both
        self._restored = False  # in this fit

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owner": None}  # a weak reference can't be pickled

    def restore(self, pl_module: LightningModule) -> None:
        """Give the best weights back to the module they are from; without any, do nothing.

        Raises:
            MisconfigurationException: If they are from another module.
        """
        if self._best is None:
            return
        self._check_owner(pl_module)
        self._restored = True
        live = pl_module.state_dict()
        if not _equal(self._best, live):
            self._last = _copy(live)
            pl_module.load_state_dict(self._best, strict=pl_module.strict_loading)
        rank_zero_info(
            f"EarlyStopping: the module has the best weights, of epoch {self.best_epoch}, step"
            f" {self.best_step} ({self.monitor}={self.best_score.item():.6g})"
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reject_twin(trainer, pl_module)
        super().setup(trainer, pl_module, stage)
        self._restored = False
        if self.restore_best_weights and stage == "fit":
            self._check_trainer(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._best is not None:
            self._check_owner(pl_module)
        self._last = None

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore(pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._restored:  # resumed where no training was left to do, so none has ended
            self.restore(pl_module)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Lightning ends training here, without on_train_end.
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == TrainerFn.FITTING:
            self.restore(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        self.best_epoch = state_dict.get("best_epoch")
        self.best_step = state_dict.get("best_step")

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._best is None:
            return
        live = checkpoint["state_dict"]
        if self._last is not None:  # the best are back; buffers may be recalibrated since
            weights = {name for name, _ in pl_module.named_parameters()} & live.keys()
            is_best = all(
                torch.equal(self._best[k], live[k].to(self._best[k].device)) for k in weights
            )
        else:
            is_best = self.best_step == trainer.global_step and _equal(self._best, live)
        kept = {"best": live if is_best else self._best}  # torch.save writes a shared tensor once
        if is_best and self._last is not None:
            kept["last"] = self._last
        checkpoint.setdefault(_CHECKPOINT_KEY, {})[self.state_key] = kept

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        kept = checkpoint.get(_CHECKPOINT_KEY, {}).get(self.state_key, {})
        wanted = self.restore_best_weights and "best" in kept
        self._best = _copy(kept["best"]) if wanted else None
        self._owner = weakref.ref(pl_module)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "last" in kept:
            pl_module.load_state_dict(kept["last"], strict=pl_module.strict_loading)
        state = checkpoint["callbacks"].get(self.state_key)
        if self.restore_best_weights and not wanted and state and state["best_score"].isfinite():
            rank_zero_warn(
                f"the checkpoint knows the best {self.monitor}, {state['best_score'].item():.6g},"
                " but not its weights: EarlyStopping gives weights back only once it is surpassed"
            )

    @override
    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        logs = trainer.callback_metrics
        skipped = trainer.fast_dev_run  # type: ignore[attr-defined]
        if skipped or not self._validate_condition_metric(logs):
            return
        current = mean_over_ranks(trainer, logs[self.monitor].squeeze())
        improved = self._improves(current)
        if improved:
            self._keep(trainer)
        should_stop, reason = self._evaluate_stopping_criteria(current)
        if improved:  # also where Lightning saw a threshold first
            self.best_score, self.wait_count = current, 0
        if should_stop and not _reached_minimum(trainer):
            # A flag raised now would stay up, whatever the checks to come say.
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            return
        if should_stop:
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason
        if reason and self.verbose:
            self._log_info(trainer, reason, self.log_rank_zero_only)

    def _improves(self, current: Tensor) -> bool:
        if self.check_finite and not current.isfinite():
            return False
        return bool(self.monitor_op(current - self.min_delta, self.best_score.to(current.device)))

    def _keep(self, trainer: Trainer) -> None:
        if self.restore_best_weights:
            self._best = _copy(trainer.lightning_module.state_dict())
            self._owner = weakref.ref(trainer.lightning_module)
        self.best_epoch = trainer.current_epoch
        self.best_step = trainer.global_step

    def _check_owner(self, pl_module: LightningModule) -> None:
        stranger = self._owner is not None and self._owner() is not pl_module
        if stranger or _shapes(self._best or {}) != _shapes(pl_module.state_dict()):
            raise MisconfigurationException(
                f"EarlyStopping(monitor={self.monitor!r}) holds the best weights of another module"
                f" or of other shapes than {type(pl_module).__name__} has now: make a new"
                " EarlyStopping for a new module"
            )

    def _check_trainer(self, trainer: Trainer) -> None:
        instead = (
            "set EarlyStopping(restore_best_weights=False) and let ModelCheckpoint(monitor=...)"
            " save the best weights"
        )
        if isinstance(trainer.strategy, _SHARDED):
            raise MisconfigurationException(
                f"{type(trainer.strategy).__name__} shards the weights, and EarlyStopping would"
                f" keep only a part of them: {instead}"
            )
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, WeightAveraging):
                raise MisconfigurationException(
                    f"{type(other).__name__} validates averaged weights, and EarlyStopping would"
                    f" keep those under training: {instead}"
                )
            rival = isinstance(other, EarlyStopping) and other.restore_best_weights
            if rival and other is not self:
                raise MisconfigurationException(
                    f"EarlyStopping of {self.monitor!r} and of {other.monitor!r} would both restore"
                    " their best weights: set restore_best_weights=False for all but one"
                )


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a state to CPU memory, sharing nothing with it."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)
        for name, value in state.items()
    }


def _equal(kept: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Say whether both states hold tensors alone, and the same ones."""
    return kept.keys() == live.keys() and all(
        isinstance(value, Tensor) and torch.equal(value, live[name].to(value.device))
        for name, value in kept.items()
    )


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _reached_minimum(trainer: Trainer) -> bool:
    """Say whether ``min_epochs``, the epoch that ends here included, and ``min_steps`` are met."""
    epochs = trainer.current_epoch + int(trainer.is_last_batch)
    return epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
