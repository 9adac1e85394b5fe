"""All practices of training in one mixin."""

from typing import Any, Literal

from lightning.pytorch import Callback
from typing_extensions import override

from lightning_practices.callbacks import LearningCurves, SkipNonFinite
from lightning_practices.mixins._early_stopping import EarlyStoppingMixin
from lightning_practices.mixins._fused_layers import FusedLayersMixin
from lightning_practices.mixins._gradient_clipping import GradientClippingMixin
from lightning_practices.mixins._learning_rate import LearningRateScheduleMixin
from lightning_practices.mixins._optimizer import OptimizerMixin
from lightning_practices.mixins._penalty import PenaltyMixin
from lightning_practices.mixins._weight_averaging import WeightAveragingMixin
from lightning_practices.schedules._learning_rate import LearningRateSchedule


class TrainingPractices(
    FusedLayersMixin,
    EarlyStoppingMixin,
    WeightAveragingMixin,
    GradientClippingMixin,
    PenaltyMixin,
    LearningRateScheduleMixin,
    OptimizerMixin,
):
    """The practices that most trainings want, in one mixin, with defaults to begin with.

    List it before the module it extends, ``class Net(TrainingPractices,
    LightningModule)``, which then has to bring its layers, ``training_step`` and a ``validation_step`` that logs ``monitor``. Each
    practice has its own mixin, which says what it does; their arguments are taken here too, under
    their names. By default

    - layers are fused (:class:`FusedLayersMixin`);
    - AdamW, which decays neither biases, norms nor embeddings, trains them
      (:class:`OptimizerMixin`);
    - its rate falls along a cosine to the end of the fit (:class:`LearningRateScheduleMixin`);
    - gradients are clipped to a norm of 1 (:class:`GradientClippingMixin`);
    - training stops when ``monitor`` has not improved for ten validations, and the best weights are
      given back (:class:`EarlyStoppingMixin`).

    Penalties (:class:`PenaltyMixin`) and averaged weights (:class:`WeightAveragingMixin`) are off
    until asked for. One ``monitor`` serves early stopping, the ``"performance"`` schedule and the
    learning curves, and that schedule is less patient than early stopping: a rate is divided
    before training is given up.

    Args:
        *args: Passed on.
        monitor: Name of the logged value by which training is judged.
        mode: Whether it is to fall, ``"min"``, or to rise, ``"max"``.
        early_stopping_patience: Validations without improvement after which training stops.
        learning_rate_schedule: See :class:`LearningRateScheduleMixin`.
        learning_rate_patience: Of ``"performance"``.
        gradient_clipping_value: Largest norm of the gradients. ``None`` to log norms alone, or to
            take the Trainer's ``gradient_clip_val``.
        weight_averaging_kind: ``"ema"`` or ``"swa"``; ``None`` for neither.
        skip_non_finite: After how many steps in a row with nan or infinite gradients, each of which
            is skipped, training ends: :class:`~lightning_practices.callbacks.SkipNonFinite`, which
            waits for the device at each step. ``None`` to do without.
        learning_curves: Path of a picture of
            :class:`~lightning_practices.callbacks.LearningCurves`. ``None`` for none.
        **kwargs: Passed on.

    Raises:
        ValueError: If an argument is none that there can be, or early stopping isn't more patient
            than the ``"performance"`` schedule.
        MisconfigurationException: When the fit starts, see the mixins.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        *args: Any,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
        early_stopping_patience: int = 10,
        learning_rate_schedule: LearningRateSchedule | Literal["performance"] = "cosine",
        learning_rate_patience: int = 3,
        gradient_clipping_value: float | None = 1.0,
        weight_averaging_kind: Literal["ema", "swa"] | None = None,
        skip_non_finite: int | None = None,
        learning_curves: str | None = None,
        **kwargs: Any,
    ) -> None:
        is_by_performance = learning_rate_schedule == "performance"
        if is_by_performance and early_stopping_patience <= learning_rate_patience:
            raise ValueError(
                f"early_stopping_patience={early_stopping_patience} ends training before"
                f" learning_rate_patience={learning_rate_patience} has divided the rate once: early"
                " stopping needs more, best several times as much"
            )
        super().__init__(
            *args,
            early_stopping_monitor=monitor,
            early_stopping_mode=mode,
            early_stopping_patience=early_stopping_patience,
            learning_rate_schedule=learning_rate_schedule,
            learning_rate_monitor=monitor,
            learning_rate_mode=mode,
            learning_rate_patience=learning_rate_patience,
            gradient_clipping_value=gradient_clipping_value,
            weight_averaging_kind=weight_averaging_kind,
            **kwargs,
        )
        self._alone: list[Callback] = []  # practices that have no mixin
        if skip_non_finite is not None:
            self._alone.append(SkipNonFinite(skip_non_finite))
        if learning_curves is not None:
            self._alone.append(LearningCurves(learning_curves, monitor=monitor, mode=mode))

    @override
    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), *self._alone]
