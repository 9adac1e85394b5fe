"""All practices of training in one mixin."""

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_practices.callbacks import (
    AveragingKind,
    EarlyStopping,
    GradientClipping,
    LearningCurves,
    Mode,
    Penalty,
    SkipNonFinite,
    WeightAveraging,
)
from lightning_practices.mixins._checkpoint import CheckpointMixin
from lightning_practices.mixins._early_stopping import EarlyStoppingMixin
from lightning_practices.mixins._fused_layers import FusedLayersMixin
from lightning_practices.mixins._gradient_clipping import GradientClippingMixin
from lightning_practices.mixins._learning_rate import LearningRateScheduleMixin
from lightning_practices.mixins._optimizer import OptimizerMixin
from lightning_practices.mixins._penalty import PenaltyMixin
from lightning_practices.mixins._practice import configured
from lightning_practices.mixins._weight_averaging import WeightAveragingMixin
from lightning_practices.optim import Optimizer, OptimizerName
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName


class TrainingPractices(
    FusedLayersMixin,
    CheckpointMixin,
    EarlyStoppingMixin,
    WeightAveragingMixin,
    GradientClippingMixin,
    PenaltyMixin,
    LearningRateScheduleMixin,
    OptimizerMixin,
):
    """The practices that most trainings want, in one mixin, with defaults to begin with.

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

    List it before the module it extends. That brings its layers, a ``training_step``, and a
    ``validation_step`` that logs ``monitor``. Layers are fused, see :class:`FusedLayersMixin`. All
    other practices have an argument each: a short value, or the object with all its options, or
    ``None``, which turns the practice off. Each is a mixin of its own too.

    A short value takes ``monitor`` and ``mode`` from here; an ``EarlyStopping`` or
    ``ModelCheckpoint`` has its own. An object is copied, so it may be given to several modules.

    With ``**practices`` in your ``__init__``, as above, ``LightningCLI(Net)`` has all arguments. In
    YAML an object is ``class_path: lightning_practices.callbacks.EarlyStopping`` with
    ``init_args``. For ``save_hyperparameters`` see :class:`PracticeMixin`.

    Args:
        *args: Passed on.
        monitor: Name of the logged value by which training is judged.
        mode: Whether it is to fall, ``"min"``, or to rise, ``"max"``.
        optimizer: See :class:`OptimizerMixin`.
        schedule: See :class:`LearningRateScheduleMixin`.
        early_stopping: See :class:`EarlyStoppingMixin`.
        gradient_clipping: See :class:`GradientClippingMixin`.
        weight_averaging: See :class:`WeightAveragingMixin`.
        penalty: See :class:`PenaltyMixin`.
        checkpoint: See :class:`CheckpointMixin`.
        skip_non_finite: After how many steps in a row with nan or infinite gradients, each of which
            is skipped, training ends; or a :class:`~lightning_practices.callbacks.SkipNonFinite`.
            It waits for the device at each step.
        learning_curves: Path of a picture, or a
            :class:`~lightning_practices.callbacks.LearningCurves`.
        **kwargs: Passed on.

    Raises:
        ValueError: If an argument is out of range, or early stopping isn't more patient than the
            ``"plateau"`` schedule, so that training would end before the rate is ever divided.
        MisconfigurationException: When the fit starts, see the mixins.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``. On construction, if no
            class takes an argument, or its type is another.
    """

    def __init__(
        self,
        *args: Any,
        monitor: str = "val_loss",
        mode: Mode = "min",
        optimizer: OptimizerName | Optimizer | None = "adamw",
        schedule: LearningRateScheduleName | LearningRateSchedule | None = "cosine",
        early_stopping: int | EarlyStopping | None = 10,
        gradient_clipping: float | GradientClipping | None = 1.0,
        weight_averaging: AveragingKind | WeightAveraging | None = None,
        penalty: Penalty | None = None,
        checkpoint: bool | ModelCheckpoint | None = True,
        skip_non_finite: int | SkipNonFinite | None = None,
        learning_curves: str | LearningCurves | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
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
            configured("skip_non_finite", skip_non_finite, SkipNonFinite, (int,), SkipNonFinite)
        )
        self._bring(
            configured(
                "learning_curves",
                learning_curves,
                LearningCurves,
                (str,),
                lambda path: LearningCurves(path, monitor=monitor, mode=mode),
            )
        )

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
