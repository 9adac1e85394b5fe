"""The callback that lets the rates of dropout follow a schedule."""

from typing import Any, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_practices._arguments import check_choice, check_count_or_share, check_layers
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.horizon import (
    FollowedSteps,
    length_of_fit,
    part_of_fit,
    warn_if_too_short,
)
from lightning_practices.callbacks._trainer.logs import log_numbers, logs_now
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._types import Interval
from lightning_practices.schedules import DropLayers, DropRate, DropSchedule, drop_rate_factor


class DropRateSchedule(PracticeCallback):
    """Let the rates of dropout layers follow a schedule during a fit.

    At each optimizer step or epoch, :class:`~lightning_practices.schedules.DropRate` sets the rate
    of each layer to its configured rate times
    :func:`~lightning_practices.schedules.drop_rate_factor`. The default is DropBlock's schedule:
    the rates rise linearly from 0 at the first step to the configured rates at the end of the fit.
    When the fit ends, even by an exception, the layers get their configured rates back. So a later
    fit, or dropout at test time, uses the configured rates.

    The factor depends only on the number of steps taken, so the callback has no state: a resumed
    fit continues the schedule, and checkpoints are the same with and without this callback. To
    resume with another length of the fit, give ``duration`` as a number of steps. All micro-batches
    of an accumulated step use the same rates. With several optimizers under manual optimization
    each step of each optimizer counts, as in ``max_steps``.

    The factor is logged as ``drop_rate_factor`` every ``log_every_n_steps``, if there is a logger
    or :class:`LearningCurves`. A second ``DropRateSchedule`` logs ``drop_rate_factor-1``.

    Args:
        schedule: ``"linear"``, ``"cosine"``, ``"early"``, ``"early_linear"`` or ``"late"``.
        layers: The layers to schedule: a layer class, the name of a layer in the module, in which
            ``*`` matches any characters, or several of these. Default: all dropout layers, see
            :class:`~lightning_practices.schedules.DropRate`.
        interval: The unit of the schedule: ``"step"`` for optimizer steps or ``"epoch"`` for
            epochs.
        duration: The point at which the schedule ends; the rates stay constant from then on. A
            float is a share of the fit, an int a number of steps or epochs. At this point
            ``"early"`` turns dropout off and ``"late"`` turns it on, and these two schedules need
            it.

    Raises:
        ValueError: If an argument is out of its range. When the fit starts, if one of ``layers``
            matches no dropout layer.
        MisconfigurationException: When the fit starts, if two ``DropRateSchedule`` callbacks
            schedule the same layer, or ``duration`` is a share of a fit whose length isn't known
            beforehand.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import DropRateSchedule
        >>> module = BoringModel()
        >>> module.layer = nn.Sequential(nn.Dropout(0.4), module.layer)
        >>> show = LambdaCallback(on_train_batch_end=lambda *_: print(round(module.layer[0].p, 2)))
        >>> callbacks = [DropRateSchedule(), show]
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=4, callbacks=callbacks).fit(module)
        0.0
        0.1
        0.2
        0.3
        >>> module.layer[0].p  # after the fit
        0.4
    """

    def __init__(
        self,
        schedule: DropSchedule = "linear",
        *,
        layers: DropLayers | None = None,
        interval: Interval = "step",
        duration: int | float = 1.0,
    ) -> None:
        check_choice("schedule", schedule, get_args(DropSchedule))
        check_choice("interval", interval, get_args(Interval))
        duration = check_count_or_share("duration", duration, f"{interval}s", least=1, gt=0)
        if schedule in ("early", "late") and isinstance(duration, float) and duration == 1.0:
            raise ValueError(
                f"with schedule={schedule!r} a duration of the whole fit is no schedule: give the"
                " duration after which dropout is turned on or off, as in duration=0.2"
            )
        self.schedule: DropSchedule = schedule
        self.layers = None if layers is None else check_layers("layers", layers)
        self.interval = interval
        self.duration = duration
        self._drop_rate: DropRate | None = None  # while a fit runs
        self._length = 0  # steps or epochs of the schedule
        self._steps = FollowedSteps("the rates of dropout follow the new number")
        self._log_name = ""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now the module is wrapped and on its device, but it isn't compiled yet.
        drop_rate = DropRate(pl_module, self.schedule, layers=self.layers, device=pl_module.device)
        alike = callbacks_of(trainer, DropRateSchedule)
        for other in alike:
            both = other._drop_rate and other._drop_rate.rates.keys() & drop_rate.rates.keys()
            if both:
                raise MisconfigurationException(
                    f"two DropRateSchedule callbacks would set the rate of {sorted(both)[0]!r}:"
                    " choose other `layers` for one of them"
                )
        index = alike.index(self)
        self._log_name = f"drop_rate_factor-{index}" if index else "drop_rate_factor"
        self._drop_rate = drop_rate

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._length = self._length_of(trainer)
        self._warn_of_short_fit(trainer)
        self._steps.begin(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        follows = self.interval == "step" and isinstance(self.duration, float)
        if follows and self._steps.have_changed(trainer):
            self._length = self._length_of(trainer)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._drop_rate is not None
        done = trainer.global_step if self.interval == "step" else trainer.current_epoch
        factor = self._drop_rate.apply(done / self._length)
        if logs_now(trainer):
            log_numbers(pl_module, {self._log_name: factor})

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()  # after an exception Lightning doesn't call teardown

    def _length_of(self, trainer: Trainer) -> int:
        argument = f"DropRateSchedule(duration={self.duration})"
        return max(1, part_of_fit(trainer, self.duration, self.interval, argument))

    def _warn_of_short_fit(self, trainer: Trainer) -> None:
        """Warn if the fit ends before the schedule does, or all of it has a factor of 0."""
        length = length_of_fit(trainer, self.interval)
        text = (
            f"the schedule of DropRateSchedule takes {self._length}: it never comes to its end, so"
            " give a smaller duration, or a share of the fit as a float"
        )
        warn_if_too_short(trainer, length, self._length, self.interval, text)
        # The factor of an epoch is that of its beginning.
        last = drop_rate_factor(self.schedule, max((length or 0) - 1, 0) / self._length)
        if self.interval == "epoch" and length == self._length == 1 and not last:
            text = "DropRateSchedule(interval='epoch') turns dropout off for the first one: the"
            warn_if_too_short(
                trainer, length, 2, "epoch", f"{text} rates stay 0, so choose interval='step'"
            )

    def _restore(self) -> None:
        if self._drop_rate is not None:
            self._drop_rate.restore()
            self._drop_rate = None
