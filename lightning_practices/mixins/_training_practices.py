"""The mixin that combines the practices of training."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from typing_extensions import override

from lightning_practices.callbacks import (
    AveragingKind,
    EarlyStopping,
    ExactResume,
    FusedLayers,
    GradientClipping,
    LearningCurves,
    Mode,
    Penalty,
    SkipNonFinite,
    WeightAveraging,
)
from lightning_practices.init import Initialization, Scheme
from lightning_practices.mixins._checkpoint import CheckpointMixin
from lightning_practices.mixins._early_stopping import EarlyStoppingMixin
from lightning_practices.mixins._fused_layers import FusedLayersMixin
from lightning_practices.mixins._gradient_clipping import GradientClippingMixin
from lightning_practices.mixins._initialization import InitMixin
from lightning_practices.mixins._learning_rate import LearningRateScheduleMixin
from lightning_practices.mixins._optimizer import OptimizerMixin
from lightning_practices.mixins._penalty import PenaltyMixin
from lightning_practices.mixins._practice import configured
from lightning_practices.mixins._preprocessed import PreprocessedMixin
from lightning_practices.mixins._weight_averaging import WeightAveragingMixin
from lightning_practices.optim import Optimizer, OptimizerName
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName

_SCHEDULE: LearningRateScheduleName = "cosine"


class TrainingPractices(
    FusedLayersMixin,
    InitMixin,
    CheckpointMixin,
    EarlyStoppingMixin,
    WeightAveragingMixin,
    GradientClippingMixin,
    PenaltyMixin,
    PreprocessedMixin,
    LearningRateScheduleMixin,
    OptimizerMixin,
):
    """The practices that most trainings need, in one mixin, with defaults to start from.

    ::

        class Net(TrainingPractices, LightningModule):
            def __init__(self, hidden: int = 64, **practices):
                super().__init__(**practices)
                self.net = nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 1))

        Net(
            optimizer=Optimizer("adamw", lr=1e-3, weight_decay=0.05),
            schedule="cosine",
            early_stopping=EarlyStopping("val_loss", patience=5, min_delta=1e-3),
            weight_averaging="ema",
        )

    List the mixin before the class that it extends. ``Net`` or its base class defines the layers, a
    ``training_step``, and a ``validation_step`` that logs ``monitor``. Each practice has one
    argument. It is a short value, or an object with all options of the practice, or ``None``, which
    turns the practice off. Each
    practice also has its own mixin, except ``exact_resume``, ``skip_non_finite`` and
    ``learning_curves``, which are only callbacks.

    If the base class has a ``configure_optimizers``, it stays unless you give an ``optimizer``. If
    it returns a scheduler too, or several optimizers, the default schedule is left out, and rank 0
    logs this.

    The callbacks for short values use the arguments ``monitor`` and ``mode``; an ``EarlyStopping``,
    ``ModelCheckpoint`` or ``LearningCurves`` object has its own. Objects are copied, so one object
    may be passed to several modules.

    With ``**practices`` in your ``__init__``, as above, ``LightningCLI(Net)`` offers all arguments.
    In YAML an object is written as ``class_path: lightning_practices.callbacks.EarlyStopping`` with
    ``init_args``. The options that ``Optimizer`` passes on to torch, such as ``betas``, are written
    below ``dict_kwargs``, beside ``init_args``. ``--model.optimizer=sgd`` chooses the optimizer;
    LightningCLI's own ``--optimizer`` replaces it, and its ``--lr_scheduler`` needs
    ``--model.schedule=null``. For ``save_hyperparameters`` see :class:`PracticeMixin`.

    Args:
        *args: Positional arguments for the next base class.
        monitor: Name of the logged value to monitor.
        mode: Direction in which the value improves: ``"min"`` if lower is better, ``"max"`` if
            higher is better.
        optimizer: See :class:`OptimizerMixin`.
        schedule: See :class:`LearningRateScheduleMixin`.
        early_stopping: See :class:`EarlyStoppingMixin`.
        gradient_clipping: See :class:`GradientClippingMixin`.
        weight_averaging: See :class:`WeightAveragingMixin`.
        penalty: See :class:`PenaltyMixin`.
        checkpoint: See :class:`CheckpointMixin`.
        exact_resume: ``True`` for :class:`~lightning_practices.callbacks.ExactResume`, or such an
            object: a fit that is resumed in mid-epoch trains the rest of the epoch as it would have
            without the interruption. ``None`` or ``False`` turns it off.
        skip_non_finite: The number of steps in a row with nan or infinite gradients that ends
            training, with an error; each of these steps is skipped. Or a
            :class:`~lightning_practices.callbacks.SkipNonFinite`. The host waits for the device at
            each step.
        learning_curves: Path of the picture of the learning curves; or a
            :class:`~lightning_practices.callbacks.LearningCurves`.
        fuse_layers: See :class:`FusedLayersMixin`.
        initialization: See :class:`InitMixin`. Off by default, since pretrained weights would be
            overwritten.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        ValueError: If an argument is out of range, or early stopping isn't more patient than the
            ``"plateau"`` schedule, so that training would end before the rate is ever divided.
        MisconfigurationException: When the fit starts, see the mixins.
        TypeError: On subclassing, if bases are of both packages of Lightning. On construction, if
            an argument is unknown to all classes, or has a type that its practice doesn't take.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import TrainingPractices
        >>> from lightning_practices.optim import Optimizer
        >>> class Net(TrainingPractices, BoringModel):
        ...     def validation_step(self, batch, batch_idx):  # a loss that rises after epoch 2
        ...         self.log("val_loss", abs(self.current_epoch - 2.0))
        >>> module = Net(optimizer=Optimizer("adamw", lr=1e-3), early_stopping=3, checkpoint=False)
        >>> trainer = Trainer(max_epochs=20, limit_train_batches=4, limit_val_batches=1,
        ...                   accelerator="cpu", logger=False,
        ...                   enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> trainer.fit(module)
        >>> type(trainer.optimizers[0]).__name__, module.early_stopping.best_step
        ('AdamW', 12)
    """

    def __init__(
        self,
        *args: Any,
        monitor: str = "val_loss",
        mode: Mode = "min",
        optimizer: OptimizerName | Optimizer | None = None,
        schedule: LearningRateScheduleName | LearningRateSchedule | None = _SCHEDULE,
        early_stopping: int | EarlyStopping | None = 10,
        gradient_clipping: float | GradientClipping | None = 1.0,
        weight_averaging: AveragingKind | WeightAveraging | None = None,
        penalty: Penalty | None = None,
        checkpoint: bool | ModelCheckpoint | None = True,
        exact_resume: bool | ExactResume | None = True,
        skip_non_finite: int | SkipNonFinite | None = None,
        learning_curves: str | LearningCurves | Path | None = None,
        fuse_layers: bool | FusedLayers | None = True,
        initialization: Scheme | Initialization | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            fuse_layers=fuse_layers,
            initialization=initialization,
            monitor=monitor,
            mode=mode,
            optimizer=optimizer,
            schedule=schedule,
            early_stopping=early_stopping,
            gradient_clipping=gradient_clipping,
            weight_averaging=weight_averaging,
            penalty=penalty,
            checkpoint=checkpoint,
            **kwargs,
        )
        self._check_patience()
        self._bring(
            configured(
                "exact_resume",
                None if exact_resume is False else exact_resume,
                ExactResume,
                (bool,),
                lambda _: ExactResume(),
                "True",
            )
        )
        self._bring(
            configured(
                "skip_non_finite", skip_non_finite, SkipNonFinite, (int,), SkipNonFinite, "3"
            )
        )
        self._bring(
            configured(
                "learning_curves",
                learning_curves,
                LearningCurves,
                (str, PathLike),
                lambda path: LearningCurves(path, monitor=monitor, mode=mode),
                "'curves.svg'",
            )
        )

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        made = super().configure_optimizers()
        own = self.learning_rate_scheduler
        if own is not None and self._is_schedule_default and not _is_one_optimizer(made):
            rank_zero_info(
                f"TrainingPractices: {type(self).__name__} brings its own schedulers or several"
                f" optimizers, so that the default schedule={_SCHEDULE!r} is left out: give an"
                " optimizer=, which replaces them, or schedule=None"
            )
            self._learning_rate_scheduler = None
            self._practices.remove(own)
            trainer: Any = self._trainer
            if trainer is not None:
                trainer.callbacks = [one for one in trainer.callbacks if one is not own]
        return made

    def _check_patience(self) -> None:
        stopping, scheduler = self.early_stopping, self.learning_rate_scheduler
        if stopping is None or scheduler is None or scheduler.schedule.name != "plateau":
            return
        if stopping.patience <= scheduler.schedule.patience:
            raise ValueError(
                f"early stopping with a patience of {stopping.patience} ends training before the"
                f" plateau schedule, with {scheduler.schedule.patience}, has divided the rate once:"
                " early stopping needs more, best several times as much"
            )


def _is_one_optimizer(made: Any) -> bool:
    """Say whether ``configure_optimizers`` returned at most one optimizer and no scheduler."""
    if isinstance(made, list | tuple):
        return len(made) <= 1 and all(map(_is_one_optimizer, made))
    return not (isinstance(made, Mapping) and made.get("lr_scheduler"))
