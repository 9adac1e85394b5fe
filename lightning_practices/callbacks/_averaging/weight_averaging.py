"""The callback that averages weights, and validates, saves and ends the fit with the averages."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_practices.callbacks._averaging.changes import Changes
from lightning_practices.callbacks._averaging.checks import check_arguments, check_trainer
from lightning_practices.callbacks._averaging.decay import decay_after, too_much_of_first
from lightning_practices.callbacks._averaging.saved import from_saved, to_save, to_save_again
from lightning_practices.callbacks._averaging.start import Start
from lightning_practices.callbacks._averaging.statistics import (
    add_recalibration,
    remove_recalibration,
    warn_of_checkpoints,
)
from lightning_practices.callbacks._averaging.tensors import (
    Averages,
    Tensors,
    copies,
    put_aside,
    trained_tensors,
    write,
)
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.horizon import length_of_fit
from lightning_practices.callbacks._trainer.kept_state import copy_to_cpu
from lightning_practices.callbacks._trainer.others import put_first
from lightning_practices.callbacks._trainer.sharding import local, to_shards
from lightning_practices.callbacks._types import Interval

_CHECKPOINT_KEY = "weight_averaging"
_DECAY = 0.999

AveragingKind = Literal["ema", "swa"]
"""The exponential moving average of weights, or stochastic weight averaging."""


class WeightAveraging(PracticeCallback):
    r"""Average the weights during training; validate, save and end the fit with the averages.

    The average :math:`\bar{w}` of the weights :math:`w_1, w_2, \dots` after successive steps or
    epochs is

    .. math::
        \bar{w}_1 = w_1 \qquad
        \bar{w}_{n+1} = d_n \bar{w}_n + (1 - d_n) w_{n+1}

    ``"ema"``, the exponential moving average, has the decay :math:`d_n = \min(d,
    \frac{1+n}{10+n})`, which is warmed up. So the average covers about the last ninth of the
    weights, whatever the length of the fit, until that is more than :math:`\frac{1}{1-d}` weights.
    With a constant decay of 0.999, 82 % of the average after 200 steps are the first weights. In
    ``"swa"``, stochastic weight averaging, :math:`d_n = \frac{n}{n+1}`, so that all weights count
    equally. The arithmetic is that of :mod:`torch.optim.swa_utils`, in place, in one call for all
    tensors, and the host doesn't wait for the device. Weights in half precision have averages in
    float32.

    **Once averaging has begun**, each validation of the fit runs on the averages, and training then
    continues with the training weights (those that the optimizer updates), restored bit for bit.
    When the fit ends at its limits, by an early stop or by Ctrl-C, the module gets the averages.
    After any other exception it has the training weights. If averaging never begins, the module
    stays unchanged. All tensors are written in place.

    **What is averaged:** the parameters, frozen ones too, and the running means and variances of
    batch and instance norms, which belong to the averaged weights. Integer buffers and all other
    buffers keep their present values: the average of a mask that holds ``-inf``, which timm's
    ``ModelEmaV3`` and torch's ``AveragedModel(use_buffers=True)`` compute, is nan. If the average
    changes slowly, the averaged statistics are a good estimate. After ``"swa"`` they are recomputed
    over the training set: if the module has batch norms and the Trainer no
    :class:`RecalibrateBatchNorm`, this callback adds one for the fit. The added callback runs only
    if training ends regularly: not after Ctrl-C, and not in a fit that is resumed at its end. To
    recompute the statistics with ``"ema"``, add a :class:`RecalibrateBatchNorm` to the Trainer.

    **Before the end of** ``"swa"`` **with batch norms**, validations use the averages of the
    running statistics, which can be far off: average weights of many epochs give other activations
    than each of these weights. So early stopping and checkpoints judge the module with these
    statistics, checkpoints hold them, and ``Trainer.test(ckpt_path="best")`` can be far worse than
    the module in memory. A warning says so. After loading a checkpoint call
    :func:`~lightning_practices.surgery.recalibrate_batch_norm`, or save the final module by
    ``trainer.save_checkpoint`` after the fit, or use ``"ema"``.

    **What is counted:** optimizer steps (not batches) or epochs. Weights that no optimizer has
    changed since the last average aren't averaged again, so a step that the ``GradScaler`` or
    :class:`SkipNonFinite` skips doesn't count. (Under ``"16-mixed"`` a fused optimizer skips within
    its step, and that step does count.)

    **Checkpoints** hold the averages and the training weights. Once averaging has begun,
    ``state_dict`` holds the averages, so ``load_from_checkpoint`` and
    ``Trainer.test(ckpt_path=...)`` load the validated weights. A resumed fit, even from a
    checkpoint saved at its end, continues exactly as if it had not been interrupted, with the
    arguments given now. A ``start`` that was reached stays reached, even if the resumed fit is
    longer or has another ``start``. On loading, each copy of the weights passes through the
    module's ``on_load_checkpoint``, so a module may have renamed layers. Any other fit starts new
    averages. Only if an exception has ended a fit, and the same Trainer continues it, are the
    averages continued too.

    **With** :class:`EarlyStopping` the best validated averages are kept, and restored at the end.

    **Memory:** one copy of the weights from the first average on, and one more copy during
    validation and saving. After the fit both copies are in CPU memory. This callback changes no
    learning rate. The SWA paper uses a constant or cyclic rate in the last epochs: set it by a
    schedule.

    **Short fits.** If there is only one average, or more than 5 % of the final average are the
    first weights, a warning says so: when the fit starts, or when it ends if its length isn't known
    beforehand.

    Sources: Polyak and Juditsky, 1992, "Acceleration of stochastic approximation by averaging";
    Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization",
    arXiv:1803.05407; the warmup of the decay is that of ``tf.train.ExponentialMovingAverage``.

    Args:
        kind: ``"ema"`` or ``"swa"``.
        decay: The decay of ``"ema"``, from 0 to below 1, 0.999 by default. The average covers about
            the last :math:`\frac{1}{1-d}` weights.
        decay_warmup: Whether the decay of ``"ema"`` grows up to its value, as above. There
            :math:`n` is the number of averages taken and not of steps, so that this holds for each
            ``start`` and ``frequency``. Without the warmup the decay is constant, as in
            :func:`torch.optim.swa_utils.get_ema_multi_avg_fn`.
        start: The point at which averaging starts: an int is a number of steps or epochs, a float
            below 1 a share of the fit. Default: 0 for ``"ema"``. For ``"swa"`` three quarters of
            the fit, as in the paper, or earlier if fewer than two averages would be taken.
        interval: The unit of ``start`` and ``frequency``: ``"step"`` or ``"epoch"``. Default: steps
            for ``"ema"``, epochs for ``"swa"``.
        frequency: The number of steps or epochs from one average to the next. The first average is
            this many steps or epochs after ``start``.

    Raises:
        ValueError: If an argument is out of its range, or contradicts another argument.
        MisconfigurationException: When the fit starts, if the strategy is FSDP1 or DeepSpeed, if
            another callback averages weights too or saves checkpoints without the state of
            callbacks (``save_weights_only``), or if ``start`` is a share of a fit whose length
            isn't known beforehand.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import WeightAveraging
        >>> module, biases = BoringModel(), []
        >>> def keep(*_):
        ...     biases.append(module.layer.bias.clone())
        >>> averaging = WeightAveraging("swa", interval="step", start=0)
        >>> callbacks = [averaging, LambdaCallback(on_train_batch_end=keep)]
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=4, callbacks=callbacks).fit(module)
        >>> torch.allclose(module.layer.bias, torch.stack(biases).mean(0), atol=1e-6)
        True
    """

    def __init__(
        self,
        kind: AveragingKind = "ema",
        *,
        decay: float | None = None,
        decay_warmup: bool = True,
        start: int | float | None = None,
        interval: Interval | None = None,
        frequency: int = 1,
    ) -> None:
        check_arguments(kind, decay, decay_warmup, start, interval, frequency)
        self.kind: AveragingKind = kind
        self.decay = (_DECAY if decay is None else decay) if kind == "ema" else None
        self.decay_warmup = decay_warmup
        self.start = start
        self.interval: Interval = interval or ("step" if kind == "ema" else "epoch")
        self.frequency = frequency
        self._changes = Changes()  # since the last average
        # Of the present fit, set as its training starts:
        self._has_warned = False  # of the first weights
        self._seen = 0  # steps or epochs at the last call of _look
        self._reset()

    @override
    def _reset(self) -> None:
        self._averages = Averages()
        self._aside: Tensors | None = None  # training weights, if the module has averages
        self._loaded: dict[str, Any] | None = None  # from a checkpoint, until training starts
        self._ended = False
        self._start = Start(self.kind, self.start, self.interval, self.frequency)
        self._changes.any = False

    @property
    def averaged(self) -> int:
        """How many times the weights have been averaged."""
        return self._averages.count if self._loaded is None else int(self._loaded["averaged"])

    @contextmanager
    def averaged_weights(self, pl_module: LightningModule) -> Iterator[None]:
        """Put the averages into the module within the context, if there are any.

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
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._changes.unwatch()
        check_trainer(trainer, self)
        if self._ended:  # the averages don't belong to the weights that the module has now
            self._reset()
        # So other callbacks see the averages in validation, and restore other weights only
        # afterwards.
        put_first(trainer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.kind == "swa":
            warn_of_checkpoints(trainer, pl_module)
            add_recalibration(trainer, pl_module, self)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_from_loaded(pl_module)
        self._seen = trainer.global_step if self.interval == "step" else trainer.current_epoch
        self._start.find(trainer)
        self._start.warn_if_late(trainer)
        length = length_of_fit(trainer, self.interval)
        self._has_warned = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if length is not None:
            due = self._start.averages_in(length) - self._start.averages_in(self._seen)
            self._warn_of_first(self.averaged + due, length, "when the fit ends")
        self._changes.watch(trainer.optimizers)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._averages.pair(pl_module)
        self._start.find(trainer)  # an epoch of another length changes what a share of the fit is

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interval == "step":
            self._look(trainer.global_step)
        elif trainer.is_last_batch:  # before the validation of this epoch
            self._look(trainer.current_epoch + 1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval == "epoch":  # an epoch cut short has no last batch
            self._look(trainer.current_epoch + 1)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # in the sanity check there are no averages yet
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
        if self._loaded is not None:  # resumed at its end, without on_train_end
            self._load(pl_module)
            self._end(pl_module)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # After an exception Lightning calls neither on_train_end nor teardown.
        remove_recalibration(trainer)
        if trainer.state.fn != TrainerFn.FITTING or self._ended:
            return
        if isinstance(exception, KeyboardInterrupt):
            self._end(pl_module)
        else:
            self._changes.unwatch()
            self._take_back(pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        remove_recalibration(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "averaged": self.averaged,
            "changed": self._changes.any,
            "start": self._start.state(),
        }

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._loaded is not None:  # nothing has been trained since loading
            checkpoint[_CHECKPOINT_KEY] = to_save_again(checkpoint["state_dict"], self._loaded)
            return
        if not self.averaged:
            return
        if self._aside is None:  # the module has the training weights
            with self.averaged_weights(pl_module):
                state = trainer.strategy.lightning_module_state_dict()
                for name, value in state.items():
                    state[name] = copy_to_cpu(value)
            checkpoint["state_dict"] = state
        live = trained_tensors(pl_module)
        current = self._aside or {name: local(tensor) for name, tensor in live.items()}
        averages = self._averages.kept
        kept = to_save(pl_module, checkpoint["state_dict"], averages, current)
        checkpoint[_CHECKPOINT_KEY] = kept

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn != TrainerFn.FITTING:
            return  # the checkpoint's state_dict holds the averages
        if "current_model_state" in checkpoint:
            raise MisconfigurationException(
                "the checkpoint was saved by Lightning's WeightAveraging, which keeps the weights"
                " under training elsewhere: resume with that callback, or give the module the"
                " state_dict and fit without ckpt_path"
            )
        state = checkpoint["callbacks"].get(self.state_key, {})
        kept = checkpoint.get(_CHECKPOINT_KEY)
        self._changes.any = state.get("changed", False)
        if state.get("kind") == self.kind:
            self._start.load(state.get("start"), checkpoint)
        if kept is None:
            return
        if state["kind"] != self.kind:
            rank_zero_warn(
                f"the checkpoint holds averages of kind {state['kind']!r}:"
                f" WeightAveraging({self.kind!r}) begins anew with the weights under training"
            )
            state = {**state, "averaged": 0}
        names = ("averages", "current") if state["averaged"] else ("current",)
        loaded = from_saved(pl_module, checkpoint, {name: kept[name] for name in names})
        self._loaded = {"averaged": state["averaged"], "averages": {}, **loaded}
        if self._changes.watched:  # Lightning's finders load within an epoch what they saved there
            self._start_from_loaded(pl_module)

    def _look(self, now: int) -> None:
        """Update the averages if that is due after ``now`` steps or epochs."""
        self._start.look(now)
        is_due = self._start.averages_in(now) > self._start.averages_in(self._seen)
        self._seen = max(now, self._seen)
        if is_due and self._changes.any:
            self._changes.any = False
            self._averages.update(decay_after(self.averaged, self.decay, self.decay_warmup))

    def _lay_aside(self, pl_module: LightningModule) -> None:
        """Put the averages, if any, into the module, and keep its training weights aside."""
        if self._aside is None and self._averages.count:
            self._averages.pair(pl_module)
            self._aside = copies(pl_module)
            write(pl_module, self._averages.kept)

    def _take_back(self, pl_module: LightningModule) -> None:
        """Put the training weights back into the module."""
        if self._aside is not None:
            write(pl_module, self._aside)
            self._aside = None

    def _end(self, pl_module: LightningModule) -> None:
        self._changes.unwatch()
        self._ended = True
        self._lay_aside(pl_module)
        if self._aside is None:
            rank_zero_info("WeightAveraging: nothing was averaged, the module is as it was trained")
            return
        live = trained_tensors(pl_module)
        self._aside = put_aside(live, self._aside)
        self._averages.kept = put_aside(live, self._averages.kept)
        rank_zero_info(f"WeightAveraging: the module has the average of {self.averaged} weights")
        self._warn_of_first(self.averaged, self._seen, "after this fit")

    def _start_from_loaded(self, pl_module: LightningModule) -> None:
        """Pair the averages with the module, after those of a checkpoint, if any, were loaded."""
        if self._loaded is not None:
            self._load(pl_module)
            self._take_back(pl_module)
        self._averages.pair(pl_module)

    def _load(self, pl_module: LightningModule) -> None:
        """Load the tensors of a checkpoint, once the module is on its device and sharded."""
        assert self._loaded is not None
        loaded, self._loaded = self._loaded, None
        if loaded["averaged"]:
            self._averages.load(pl_module, loaded["averages"], loaded["averaged"])
        live = trained_tensors(pl_module)
        current = to_shards(loaded["current"], live)
        self._aside = {name: value for name, value in current.items() if name in live}

    def _warn_of_first(self, averages: int, length: int, when: str) -> None:
        """Warn once in a fit, if the average would keep too much of the first weights."""
        if averages == 1 and length < 2 * self.frequency:
            return  # a trial, too short for two averages
        warning = too_much_of_first(averages, self.decay, self.decay_warmup, when)
        if warning is not None and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(warning)
