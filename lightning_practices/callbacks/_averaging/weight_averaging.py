"""Weights averaged in the course of training: validated, saved and given at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._averaging.checks import check_arguments, check_trainer
from lightning_practices.callbacks._averaging.statistics import (
    RecalibrateAverages,
    has_batch_norm,
    without_recalibration,
)
from lightning_practices.callbacks._averaging.tensors import (
    Averages,
    Tensors,
    copied,
    copies,
    gathered,
    local,
    put_aside,
    shared,
    shares,
    trained_tensors,
    write,
)
from lightning_practices.callbacks._recalibrate_batch_norm import RecalibrateBatchNorm
from lightning_practices.callbacks._trainer.horizon import epochs_of_fit, steps_of_fit, why_unknown

_CHECKPOINT_KEY = "weight_averaging"
_DECAY = 0.999

Kind = Literal["ema", "swa"]
Interval = Literal["step", "epoch"]


class WeightAveraging(Callback):
    r"""Average the weights in the course of training; validate, save and end with the averages.

    With the weights :math:`w_1, w_2, \dots` that are averaged, each after a step or an epoch,

    .. math::
        \bar{w}_1 = w_1 \qquad
        \bar{w}_{n+1} = d_n \bar{w}_n + (1 - d_n) w_{n+1}

    ``"ema"``, the exponential moving average, has a constant ``decay`` :math:`d`; ``"swa"``,
    stochastic weight averaging, :math:`d_n = \frac{n}{n+1}`: all count alike. The arithmetic is
    that of :mod:`torch.optim.swa_utils`, in place and in one call for all tensors, and nothing
    waits for the device. Weights of half precision have averages in float32.

    **Once averaging has begun**, each validation of the fit runs on the averages, and training goes
    on from its own weights, bit for bit. However the fit ends, at its limits, stopped or by Ctrl-C,
    the module then has the averages. Any other exception leaves it the weights under training.
    Until it has begun, and if it never does, the module is left alone. All is written in place.

    **What is averaged** are the parameters, frozen ones too, and the running statistics of batch
    norms; other buffers are left alone. Of a slow average these statistics are a good estimate. At
    the end of ``"swa"`` they are recomputed over the training set: for a module with batch norms it
    brings :class:`RecalibrateBatchNorm` along, unless the Trainer has one, and that needs some
    training to end: not Ctrl-C, nor a fit resumed where none is left. For ``"ema"`` pass one if you
    want it.

    **What counts**: optimizer steps, however many batches make one, or epochs. Weights that no
    optimizer has changed since they were last averaged aren't averaged again: of a step that the
    ``GradScaler`` or :class:`SkipNonFinite` has skipped nothing is counted. (A fused optimizer
    skips within its step under ``"16-mixed"``: that counts.)

    **Checkpoints** hold both. Their ``state_dict`` has the averages once there are any, those that
    were validated, for ``load_from_checkpoint`` and ``Trainer.test(ckpt_path=...)``. A fit resumed
    from them, from those saved after the end too, goes on exactly as if it had never ended, with
    the arguments given now. A fit that isn't resumed averages anew.

    **Beside** :class:`EarlyStopping` the best of the averages that were validated are kept, and
    given back at the end.

    It costs the memory of one copy of the weights from the start of averaging on, and of another
    while it validates or saves; after the fit both are in CPU memory. For the rates of the last
    epochs, constant or cyclic in the paper, see the schedules: this changes none.

    Sources: Polyak and Juditsky, 1992, "Acceleration of stochastic approximation by averaging";
    Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization",
    arXiv:1803.05407.

    Args:
        kind: ``"ema"`` or ``"swa"``.
        decay: Of ``"ema"``, from 0 to below 1, 0.999 by default. About the last
            :math:`\frac{1}{1-d}` weights count.
        decay_warmup: Whether the ``decay`` grows up to its value, :math:`d_n =
            \min(d, \frac{1+n}{10+n})`, so that the average forgets the first weights sooner: for a
            fit that isn't many times longer than what the ``decay`` remembers.
        start: After how much of the fit averaging starts: an int for a number of steps or epochs, a
            float below 1 for a share of it.
        interval: What is counted, ``"step"`` or ``"epoch"``. Default: steps for ``"ema"``, epochs
            for ``"swa"``.
        frequency: How many steps or epochs lie between the weights that are averaged: the first are
            those of this many after ``start``.

    Raises:
        ValueError: If an argument is none of the above, or contradicts another.
        MisconfigurationException: When the fit starts, if the strategy is FSDP1 or DeepSpeed,
            another callback averages weights too or saves checkpoints without the state of
            callbacks (``save_weights_only``), or ``start`` is a share of a length that isn't known
            beforehand.
        TypeError: If the trainer or the module is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        kind: Kind = "ema",
        *,
        decay: float | None = None,
        decay_warmup: bool = False,
        start: int | float = 0,
        interval: Interval | None = None,
        frequency: int = 1,
    ) -> None:
        check_arguments(kind, decay, decay_warmup, start, interval, frequency)
        self.kind: Kind = kind
        self.decay = (_DECAY if decay is None else decay) if kind == "ema" else None
        self.decay_warmup = decay_warmup
        self.start = start
        self.interval: Interval = interval or ("step" if kind == "ema" else "epoch")
        self.frequency = frequency
        self._reset()

    def _reset(self) -> None:
        self._averages = Averages()
        self._aside: Tensors | None = None  # the weights under training, if the module has others
        self._loaded: dict[str, Any] | None = None  # of a checkpoint, until training goes on
        self._ended = False
        self._changed = False  # the weights, since they were averaged
        self._start = 0  # in steps or epochs
        self._seen = 0  # of them
        self._hooks: list[RemovableHandle] = []

    @property
    def averaged(self) -> int:
        """How many weights have been averaged, for all tensors one count."""
        return self._averages.count if self._loaded is None else int(self._loaded["averaged"])

    @contextmanager
    def averaged_weights(self, pl_module: LightningModule) -> Iterator[None]:
        """Let the module have the averages for a while, as in validation, if there are any.

        Args:
            pl_module: The module of the fit.
        """
        had_them = self._aside is not None
        self._lay_aside(pl_module)
        try:
            yield
        finally:
            if not had_them:
                self._take_back(pl_module)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reject_twin(trainer, pl_module)
        if stage != "fit":
            return
        check_trainer(trainer, self)
        self._unwatch()
        self._reset()
        # First: others then see the averages in validation, and give other weights back later. A
        # new list: Lightning is iterating over the old one.
        trainer.callbacks = sorted(  # type: ignore[attr-defined]
            trainer.callbacks,  # type: ignore[attr-defined]
            key=lambda callback: callback is not self,
        )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        has_one = any(isinstance(callback, RecalibrateBatchNorm) for callback in callbacks)
        if self.kind == "swa" and not has_one and has_batch_norm(pl_module):
            recalibrate = RecalibrateAverages(self)
            trainer.callbacks = [*callbacks, recalibrate]  # type: ignore[attr-defined]
            recalibrate.setup(trainer, pl_module, "fit")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is not None:
            self._load(pl_module)
            self._take_back(pl_module)
        self._averages.pair(pl_module)
        self._seen = trainer.global_step if self.interval == "step" else trainer.current_epoch
        self._start = self._start_of(trainer)
        self._hooks = [
            optimizer.register_step_post_hook(self._note) for optimizer in trainer.optimizers
        ]

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._averages.pair(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interval == "step":
            self._look(trainer.global_step)
        elif trainer.is_last_batch:  # before it is validated
            self._look(trainer.current_epoch + 1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval == "epoch":  # cut short
            self._look(trainer.current_epoch + 1)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # before any averages, in the sanity check
            self._lay_aside(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._take_back(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is not None:  # resumed where no training was left to do, so none has ended
            self._load(pl_module)  # the module has the averages, of the checkpoint's state_dict
            self._end(pl_module)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Lightning ends training here, without on_train_end and teardown.
        without_recalibration(trainer)
        if trainer.state.fn != TrainerFn.FITTING or self._ended:
            return
        if isinstance(exception, KeyboardInterrupt):
            self._end(pl_module)
        else:
            self._unwatch()
            self._take_back(pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        without_recalibration(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "averaged": self.averaged,
            "changed": self._changed,
        }

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._loaded is not None:  # and nothing has been trained since
            checkpoint[_CHECKPOINT_KEY] = {k: self._loaded[k] for k in ("averages", "current")}
            return
        if not self.averaged:
            return
        if self._aside is None:  # the module hasn't the averages
            with self.averaged_weights(pl_module):
                state = trainer.strategy.lightning_module_state_dict()
                for name, value in state.items():
                    state[name] = copied(value)
            checkpoint["state_dict"] = state
        live = trained_tensors(pl_module)
        current = self._aside or {name: local(tensor) for name, tensor in live.items()}
        averages = gathered(live, self._averages.kept)
        checkpoint[_CHECKPOINT_KEY] = {
            "averages": shared(averages, checkpoint["state_dict"]),
            "current": gathered(live, current),
        }

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return  # the averages, of its state_dict, are what is wanted
        if "current_model_state" in checkpoint:
            raise MisconfigurationException(
                "the checkpoint is one of Lightning's WeightAveraging, whose weights under training"
                " are elsewhere: resume with that callback, or give the module the state_dict and"
                " fit without ckpt_path"
            )
        state = checkpoint["callbacks"].get(self.state_key, {})
        kept = checkpoint.get(_CHECKPOINT_KEY)
        self._changed = state.get("changed", False)
        if kept is None:
            return
        self._loaded = {"averaged": state["averaged"], **kept}
        if state["kind"] != self.kind:
            rank_zero_warn(
                f"the checkpoint holds averages of kind {state['kind']!r}:"
                f" WeightAveraging({self.kind!r}) begins anew with the weights under training"
            )
            self._loaded |= {"averaged": 0, "averages": {}}

    def _note(self, optimizer: Optimizer, *_: Any) -> None:
        # A GradScaler makes no step that it skips, SkipNonFinite one without gradients.
        if not self._changed:
            groups = optimizer.param_groups
            self._changed = any(p.grad is not None for group in groups for p in group["params"])

    def _unwatch(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _look(self, now: int) -> None:
        """Average if it is time, ``now`` being the steps or epochs done."""
        is_due = self._points(now) > self._points(self._seen)
        self._seen = max(now, self._seen)
        if is_due and self._changed:
            self._changed = False
            decay, n = self.decay, self.averaged
            if decay is not None and self.decay_warmup:
                decay = min(decay, (1 + n) / (10 + n))
            self._averages.update(decay)

    def _points(self, done: int) -> int:
        return max(done - self._start, 0) // self.frequency

    def _lay_aside(self, pl_module: LightningModule) -> None:
        """Let the module have the averages, if there are any."""
        if self._aside is None and self._averages.count:
            self._averages.pair(pl_module)
            self._aside = copies(pl_module)
            write(pl_module, self._averages.kept)

    def _take_back(self, pl_module: LightningModule) -> None:
        """Let the module have the weights under training."""
        if self._aside is not None:
            write(pl_module, self._aside)
            self._aside = None

    def _end(self, pl_module: LightningModule) -> None:
        self._unwatch()
        self._ended = True
        self._lay_aside(pl_module)
        if self._aside is None:
            rank_zero_info("WeightAveraging: nothing was averaged, the module is as it was trained")
            return
        live = trained_tensors(pl_module)
        self._aside = put_aside(live, self._aside)
        self._averages.kept = put_aside(live, self._averages.kept)
        rank_zero_info(f"WeightAveraging: the module has the average of {self.averaged} weights")

    def _load(self, pl_module: LightningModule) -> None:
        """Take what a checkpoint holds, once the module is on its device, and sharded."""
        assert self._loaded is not None
        loaded, self._loaded = self._loaded, None
        if loaded["averaged"]:
            self._averages.load(pl_module, loaded["averages"], loaded["averaged"])
        self._aside = shares(trained_tensors(pl_module), loaded["current"])

    def _start_of(self, trainer: Trainer) -> int:
        is_epoch = self.interval == "epoch"
        length = epochs_of_fit(trainer) if is_epoch else steps_of_fit(trainer)
        if isinstance(self.start, int) or not self.start:
            start = int(self.start)
        elif length is None:
            raise MisconfigurationException(
                f"WeightAveraging(start={self.start}) is a share of the fit, but how many"
                f" {self.interval}s that takes isn't known beforehand ({why_unknown(trainer)}):"
                f" give the start as a number of {self.interval}s, an int"
            )
        else:
            start = round(self.start * length)
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        if length is not None and start + self.frequency > length and not is_trial:
            rank_zero_warn(
                f"the fit takes {length} {self.interval}s, and WeightAveraging would average for"
                f" the first time after {start + self.frequency}: it never will"
            )
        return start
