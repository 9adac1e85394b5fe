"""Lightning's Tuner and its two finders, with the mixins: afterwards a fit is as without them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import (
    EarlyStopping,
    GradientClipping,
    Penalty,
    WeightAveraging,
)
from lightning_practices.mixins import (
    CheckpointMixin,
    EarlyStoppingMixin,
    FineTuningMixin,
    FusedLayersMixin,
    GradientClippingMixin,
    LearningRateScheduleMixin,
    MonteCarloDropoutMixin,
    PenaltyMixin,
    TrainingPractices,
    WeightAveragingMixin,
)
from lightning_practices.optim import Optimizer
from lightning_practices.schedules import LearningRateSchedule
from tests.mixins.tuned import RATE, ROWS, Base, WithRate, trainer_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*recomputes the running statistics of batch norms only"),
    pytest.mark.filterwarnings("ignore:.*decays .* of the parameters that Penalty penalises"),
]


class Net(TrainingPractices, Base):
    pass


class Off(TrainingPractices, WithRate):
    pass


OFF: dict[str, Any] = dict.fromkeys(
    (
        "optimizer",
        "schedule",
        "early_stopping",
        "gradient_clipping",
        "checkpoint",
        "exact_resume",
        "fuse_layers",
    )
)


ALONE: dict[type, dict[str, Any]] = {
    CheckpointMixin: {},
    EarlyStoppingMixin: {},
    FineTuningMixin: {},
    FusedLayersMixin: {},
    GradientClippingMixin: {"gradient_clipping": 0.1},
    LearningRateScheduleMixin: {},
    MonteCarloDropoutMixin: {"monte_carlo_dropout": "regression"},
    PenaltyMixin: {"penalty": Penalty(l1=1e-2)},
    WeightAveragingMixin: {},
}


def after(trainer: Trainer) -> dict[str, Any]:
    """Return all that the Trainer would save."""
    found = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    for name, state in found["callbacks"].items():
        if "Checkpoint" in name:
            found["callbacks"][name] = {k: state[k] for k in ("best_model_score", "monitor")}
    found.pop("optimizer_lr", None)
    return found


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Return the places at which two nested states differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{at}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{at}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{at}: {len(a)} and {len(b)} items"]
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{at}/{i}")]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if torch.equal(a, b) else [at]
    return [] if a == b else [f"{at}: {a} and {b}"]


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "unclipped": {"gradient_clipping": None, "checkpoint": None},
    "all": {
        "schedule": LearningRateSchedule("cosine", warmup_steps=3),
        "gradient_clipping": GradientClipping(percentile=50, warmup_steps=4, log_layers="top2"),
        "weight_averaging": "ema",
        "penalty": Penalty(l1=1e-3, l2=1e-3, proximal=True),
        "skip_non_finite": 3,
        "learning_curves": "curves.svg",
    },
    "plateau": {
        "schedule": LearningRateSchedule("plateau", patience=0),
        "early_stopping": EarlyStopping("val_loss", patience=2),
        "weight_averaging": WeightAveraging("swa"),
        "gradient_clipping": GradientClipping(groups={"head*": 0.1}),
        "checkpoint": None,
    },
}


def tune(trainer: Trainer, module: LightningModule) -> None:
    """Make all searches of the Tuner in turn."""
    tuner = Tuner(trainer)
    tuner.lr_find(module, num_training=15)
    tuner.scale_batch_size(module, method="validate", max_trials=1)
    module.train()  # Lightning leaves any module in eval mode here, and warns in the next fit
    tuner.scale_batch_size(module, mode="power", init_val=3, max_trials=2)
    tuner.scale_batch_size(module, mode="binsearch", init_val=4, max_trials=2)


def fitted_as_without_the_tuner(
    folder: Path, module: Any, make: Callable[[Any], Any], *finders: Callback
) -> list[str]:
    """Fit after the Tuner, or with finders, and return the differences from a fit without them.

    Args:
        folder: For the checkpoints.
        module: The module.
        make: Makes the module again, with the learning rate that was found.
        finders: Callbacks that search within the fit, in place of the Tuner.
    """
    trainer = trainer_of(folder, *finders)
    if not finders:
        tune(trainer, module)
    trainer.fit(module)
    expected = make(module.lr)
    expected.batch_size = module.batch_size
    reference = trainer_of(folder)
    reference.fit(expected)
    assert module.lr != RATE
    assert module.batch_size != 2
    assert trainer.callback_metrics == reference.callback_metrics
    return differences(after(trainer), after(reference))


def made(settings: dict[str, Any], lr: float) -> Net:
    decay = 0.5 if "penalty" in settings else None
    return Net(**settings, optimizer=Optimizer("adamw", lr, layer_decay=decay))


@pytest.mark.parametrize("settings", SETTINGS)
def test_after_the_tuner(settings: str, tmp_path: Path) -> None:
    given = SETTINGS[settings]
    module = Net() if settings == "defaults" else made(given, RATE)
    make = partial(made, given)
    assert fitted_as_without_the_tuner(tmp_path, module, make) == []


def finders() -> tuple[Callback, ...]:
    return LearningRateFinder(num_training_steps=15), BatchSizeFinder(max_trials=2)


@pytest.mark.parametrize("settings", ["all", "plateau"])
def test_with_the_finders_as_callbacks(settings: str, tmp_path: Path) -> None:
    # ExactResume gives back the random states of before the search, and so not those of Seeds.
    make = partial(made, {**SETTINGS[settings], "exact_resume": None})
    assert fitted_as_without_the_tuner(tmp_path, make(RATE), make, *finders()) == []


@pytest.mark.parametrize("mixin", ALONE)
def test_each_mixin_alone(mixin: type, tmp_path: Path) -> None:
    kind: Any = type("Alone", (mixin, WithRate), {})

    def make(lr: float) -> Any:
        module = kind(**ALONE[mixin])
        module.lr = lr
        return module

    assert fitted_as_without_the_tuner(tmp_path, make(RATE), make, *finders()) == []


def test_all_practices_off(tmp_path: Path) -> None:
    def make(lr: float) -> Off:
        module = Off(**OFF)
        module.lr = lr
        return module

    assert fitted_as_without_the_tuner(tmp_path, make(RATE), make) == []


def test_between_two_fits_of_a_trainer(tmp_path: Path) -> None:
    def fitted(*, tunes: bool) -> dict[str, Any]:
        module, trainer = made({}, RATE), trainer_of(tmp_path)
        trainer.fit(module)
        assert module.early_stopping is not None
        assert module.early_stopping.best_step == 8  # the last weights of the fit are others
        trainer.fit_loop.max_epochs = 4
        if tunes:
            Tuner(trainer).lr_find(module, num_training=15, update_attr=False)
        trainer.fit(module)
        return after(trainer)

    assert differences(fitted(tunes=True), fitted(tunes=False)) == []


class Late(LearningRateFinder):
    """Searches at the start of the second epoch, as Lightning's documentation shows."""

    @override
    def on_fit_start(self, *_: Any) -> None:
        pass

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


class Long(Net):
    """Has as many batches in an epoch as a search takes, which ends with the epoch."""

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(ROWS.repeat(3, 1), batch_size=2, shuffle=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact_resume", [True, None])
def test_a_finder_within_the_fit(tmp_path: Path, exact_resume: bool | None) -> None:
    module = Long(weight_averaging="ema", exact_resume=exact_resume)
    module.lr = RATE
    trainer = trainer_of(tmp_path, Late(num_training_steps=20, early_stop_threshold=None))
    trainer.fit(module)
    assert trainer.global_step == 2 * 24
    assert module.weight_averaging is not None
    assert module.weight_averaging.averaged == 2 * 24


class Forgetful(TrainingPractices, WithRate):
    @override
    def configure_callbacks(self) -> list[Callback]:
        return []


def test_callbacks_that_are_left_out(tmp_path: Path) -> None:
    message = (
        r"Forgetful.configure_callbacks doesn't return .* FoundLearningRate, "
        r".*GradientClipping.*return \[\*super\(\).configure_callbacks\(\), "
    )
    with pytest.raises(MisconfigurationException, match=message):
        trainer_of(tmp_path).fit(Forgetful(optimizer="sgd"))
    trainer_of(tmp_path).fit(Forgetful(**OFF))
