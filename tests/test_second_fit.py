"""No state of one fit reaches another: every callback and mixin in a second fit."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices import callbacks as practices
from lightning_practices.callbacks import (
    BestCheckpoint,
    DropRateSchedule,
    EarlyStopping,
    ExactResume,
    FitPreprocessing,
    FusedLayers,
    GradientClipping,
    Initialize,
    LearningCurves,
    LearningRateScheduler,
    Penalty,
    ProgressiveUnfreezing,
    RecalibrateBatchNorm,
    RetrainFor,
    SkipNonFinite,
    SnapshotEnsemble,
    TrainingAdvisor,
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
    OptimizerMixin,
    PenaltyMixin,
    TrainingPractices,
    WeightAveragingMixin,
)
from lightning_practices.modules import LightningEnsemble
from lightning_practices.schedules import LearningRateSchedule
from tests.refits import (
    FAILURES,
    STEPS,
    Net,
    Notes,
    Plain,
    data,
    differences,
    fit,
    outcome,
    trainer_of,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*recomputes the running statistics of batch norms only"),
    pytest.mark.filterwarnings("ignore:.*Please add the following callbacks"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the members of an ensemble
]

PHASES: Any = [
    {
        "blocks": ["head"],
        "until": {"plateau": {"monitor": "val_loss", "patience": 1}, "epoch": 1},
        "restore_best": True,
    },
    {"blocks": ["backbone"]},
]


class Poison(Callback):
    """Makes a gradient nan before two of the steps."""

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step in (1, 4):
            for p in pl_module.parameters():
                p.grad = torch.full_like(p, torch.nan)


_Copied = TypeVar("_Copied")
Make = Callable[[], list[Callback]]
CASES: dict[str, Make] = {
    "EarlyStopping": lambda: [EarlyStopping("val_loss", patience=1)],
    "EarlyStopping of several": lambda: [EarlyStopping(["val_loss", "train_loss"], patience=1)],
    "ExactResume": lambda: [ExactResume()],
    "RetrainFor": lambda: [RetrainFor(4, 6)],
    "BestCheckpoint": lambda: [BestCheckpoint("val_loss")],
    "BestCheckpoint in a folder": lambda: [BestCheckpoint("val_loss", dirpath="FOLDER")],
    "WeightAveraging, ema": lambda: [WeightAveraging(decay=0.5)],
    "WeightAveraging, swa": lambda: [WeightAveraging("swa")],
    "GradientClipping": lambda: [GradientClipping(percentile=50, warmup_steps=8)],
    "SkipNonFinite": lambda: [SkipNonFinite(), Poison()],
    "Penalty": lambda: [Penalty(l1=0.1, l2=0.1, proximal=True)],
    "FusedLayers": lambda: [FusedLayers()],
    "Initialize": lambda: [Initialize()],
    "RecalibrateBatchNorm": lambda: [RecalibrateBatchNorm()],
    "ProgressiveUnfreezing": lambda: [
        ProgressiveUnfreezing(PHASES, backbone="backbone", head="head")
    ],
    "SnapshotEnsemble": lambda: [SnapshotEnsemble(2, steps=6)],
    "TrainingAdvisor": lambda: [TrainingAdvisor()],
    "LearningCurves": lambda: [LearningCurves("curves.svg", metrics=["val_loss"])],
    "LearningRateScheduler": lambda: [LearningRateScheduler(LearningRateSchedule("cosine"))],
    "LearningRateScheduler, plateau": lambda: [
        LearningRateScheduler(LearningRateSchedule("plateau", patience=0))
    ],
    "DropRateSchedule": lambda: [DropRateSchedule(duration=4)],
}
TOGETHER: dict[str, Make] = {
    "some": lambda: [
        EarlyStopping("val_loss", patience=1),
        BestCheckpoint("val_loss"),
        WeightAveraging(decay=0.5),
        GradientClipping(percentile=50),
        SkipNonFinite(),
        Poison(),
        Penalty(l2=0.1, l1=0.1, proximal=True),
        LearningRateScheduler("cosine"),
        DropRateSchedule(),
    ],
    "others": lambda: [
        EarlyStopping(["val_loss", "train_loss"], patience=1),
        BestCheckpoint("val_loss", dirpath="FOLDER"),
        WeightAveraging("swa", start=0),
        ProgressiveUnfreezing(PHASES, backbone="backbone", head="head"),
        SnapshotEnsemble(2, steps=6),
        RecalibrateBatchNorm(),
    ],
}


def made(case: str, folder: Path) -> list[Callback]:
    callbacks = (CASES | TOGETHER)[case]()
    for one in callbacks:
        if isinstance(one, BestCheckpoint) and one.dirpath is not None:
            one.dirpath = str(folder / "best")
    return callbacks


def through_torch(given: _Copied) -> _Copied:
    file = io.BytesIO()
    torch.save(given, file)
    file.seek(0)
    loaded: _Copied = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopied": copy.deepcopy,
    "pickled": lambda given: pickle.loads(pickle.dumps(given)),
    "saved by torch": through_torch,
}
WAYS = ["validated", *FAILURES, *COPIES]


def first_fit(
    how: str, module: Any, callbacks: list[Callback], folder: Path, **options: Any
) -> None:
    """Make the first fit, and validate and test after it if ``how`` says so."""
    if how in FAILURES:
        module.error = FAILURES[how]
        with pytest.raises((ValueError, SystemExit)):
            fit(module, callbacks, "easy", folder, **options)
        module.error = None
        return
    trainer = fit(module, callbacks, "easy", folder, **options)
    if how == "validated":
        trainer.save_checkpoint(folder / "first.ckpt")
        for one in (trainer, trainer_of(callbacks, folder, **options)):
            one.validate(module, data("other"), verbose=False)
            one.test(module, data("other"), ckpt_path=folder / "first.ckpt", verbose=False)


@pytest.mark.parametrize(
    ("case", "how"),
    [
        *((case, "finished") for case in CASES),
        *((case, how) for case in ("RetrainFor", *TOGETHER) for how in WAYS),
        ("ExactResume", "failed"),
        ("ExactResume", "saved by torch"),
        ("LearningCurves", "validated"),
        ("LearningCurves", "pickled"),
    ],
)
def test_a_new_fit_with_the_same_callbacks(case: str, how: str, tmp_path: Path) -> None:
    found = []
    for name in ("same", "fresh"):
        folder = tmp_path / name
        callbacks = made(case, folder)
        first_fit(how, Net(), callbacks, folder / "first")
        callbacks = COPIES.get(how, list)(callbacks) if name == "same" else made(case, folder)
        module = Net()
        found.append(outcome(fit(module, callbacks, "other", folder), module))
    same, fresh = found
    assert not differences(same, fresh, {str(tmp_path / "same"): str(tmp_path / "fresh")})


def test_every_callback_has_a_case() -> None:
    known = {getattr(practices, name) for name in practices.__all__}
    kinds = {kind for kind in known if isinstance(kind, type) and issubclass(kind, Callback)}
    kinds -= {FitPreprocessing}  # has no state: the layer that it fits is the module's
    objects = [one for make in CASES.values() for one in make()]
    assert [kind for kind in kinds if not any(isinstance(one, kind) for one in objects)] == []


# A fit that goes on.


def goes_on(folder: Path) -> dict[str, list[Callback]]:
    """Return callbacks that leave the weights as the last step has left them."""
    return {
        "some": [
            EarlyStopping("val_loss", patience=9, restore_best_weights=False),
            BestCheckpoint("val_loss", dirpath=folder / "best"),
            GradientClipping(percentile=50, warmup_steps=8),
            SkipNonFinite(),
            Poison(),
            Penalty(l1=0.1, l2=0.1, proximal=True),
            LearningRateScheduler(LearningRateSchedule("cosine", steps=12)),
            DropRateSchedule(duration=8),
        ],
        "others": [
            ProgressiveUnfreezing(PHASES, backbone="backbone", head="head"),
            LearningCurves("curves.svg", metrics=["val_loss"]),
        ],
        "snapshots": [SnapshotEnsemble(3, steps=12)],
    }


@pytest.mark.filterwarnings("ignore:the fit has 6 .*steps, and the")  # the first of two
@pytest.mark.parametrize("case", ["some", "others", "snapshots"])
@pytest.mark.parametrize("between", [False, True])
def test_the_same_trainer_goes_on_with_the_state(case: str, between: bool, tmp_path: Path) -> None:
    whole, parts = Plain(), Plain()
    expected = outcome(
        fit(whole, goes_on(tmp_path / "a")[case], "easy", tmp_path / "a", epochs=4), whole
    )
    folder = tmp_path / "b"
    save = ModelCheckpoint(folder, "{step}", save_top_k=-1)
    trainer = fit(parts, [*goes_on(folder)[case], save], "easy", folder)
    if between:
        weights, logger = copy.deepcopy(parts.state_dict()), trainer.logger
        trainer.logger = None
        for one in (trainer, trainer_of(trainer.callbacks, folder)):  # type: ignore[attr-defined]
            one.validate(parts, data("other"), verbose=False)
            one.test(parts, data("other"), ckpt_path=folder / "step=3.ckpt", verbose=False)
        trainer.logger = logger
        parts.load_state_dict(weights)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(parts, data("easy"), data("easy"))
    found = outcome(trainer, parts)
    found["checkpoint"]["callbacks"].pop(save.state_key)
    for each in (expected, found):  # Lightning's own counts, of this fit
        del each["checkpoint"]["loops"], each["checkpoint"]["lr_schedulers"]
    assert not differences(expected, found, {str(tmp_path / "a"): str(folder)})


@pytest.mark.parametrize(
    ("case", "saved"),
    [("some", "with the callbacks"), ("others", "with the callbacks"), ("some", "without them")],
)
def test_a_fit_from_a_checkpoint_has_its_state_alone(case: str, saved: str, tmp_path: Path) -> None:
    def callbacks(folder: Path) -> list[Callback]:
        all_of_them = made(case, folder)
        if saved == "with the callbacks":
            return all_of_them
        return [one for one in all_of_them if not isinstance(one, LearningRateScheduler)]

    save = ModelCheckpoint(tmp_path / "saved", "{step}", save_top_k=-1)
    others = callbacks(tmp_path / "saved") if saved == "with the callbacks" else []
    fit(Net(), [*others, save], "easy", tmp_path, epochs=4)
    path = tmp_path / "saved" / f"step={STEPS}.ckpt"
    found = []
    for name in ("same", "fresh"):
        folder, module = tmp_path / name, Net()
        trainer = trainer_of(callbacks(folder), folder, epochs=4)
        if name == "same":
            trainer.fit(module, data("easy"), data("easy"))
            trainer.logger = Notes()
            for leftover in folder.rglob("*.ckpt"):
                leftover.unlink()
        trainer.fit(module, data("easy"), data("easy"), ckpt_path=path)
        found.append(outcome(trainer, module))
    same, fresh = found
    assert not differences(same, fresh, {str(tmp_path / "same"): str(tmp_path / "fresh")})


# Modules with practices.


class Pair(LightningEnsemble):
    """An ensemble with a factor that is trained; its members are frozen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([nn.Linear(3, 1), nn.Linear(3, 1)], task="regression")
        self.factor = nn.Parameter(torch.ones(()))

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.factor * self(batch[:, :3]) - batch[:, 3:]).square().mean()
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Stops(EarlyStoppingMixin, Net): ...


class Averages(WeightAveragingMixin, Net): ...


class Clips(GradientClippingMixin, Net): ...


class Saves(CheckpointMixin, Net): ...


class Penalises(PenaltyMixin, Net): ...


class Schedules(LearningRateScheduleMixin, Net): ...


class Optimizes(OptimizerMixin, Net): ...


class Tunes(FineTuningMixin, Net): ...


class Fuses(FusedLayersMixin, Net): ...


class Drops(MonteCarloDropoutMixin, Net): ...


class Trains(TrainingPractices, FineTuningMixin, Net): ...


MODULES: dict[str, Callable[[], LightningModule]] = {
    "EarlyStoppingMixin": lambda: Stops(early_stopping=1),
    "WeightAveragingMixin": lambda: Averages(weight_averaging=WeightAveraging(decay=0.5)),
    "GradientClippingMixin": lambda: Clips(gradient_clipping=GradientClipping(percentile=50)),
    "CheckpointMixin": lambda: Saves(),
    "PenaltyMixin": lambda: Penalises(penalty=Penalty(l2=0.1)),
    "LearningRateScheduleMixin": lambda: Schedules(schedule="cosine"),
    "OptimizerMixin": lambda: Optimizes(optimizer="adamw"),
    "FineTuningMixin": lambda: Tunes(fine_tuning=PHASES),
    "FusedLayersMixin": lambda: Fuses(),
    "MonteCarloDropoutMixin": lambda: Drops(monte_carlo_dropout="regression"),
    "LightningEnsemble": lambda: Pair(),
    "TrainingPractices": lambda: Trains(
        early_stopping=1,
        weight_averaging=WeightAveraging(decay=0.5),
        gradient_clipping=GradientClipping(percentile=50),
        penalty=Penalty(l2=0.1),
        optimizer="sgd",
        schedule="one_cycle",
        skip_non_finite=2,
        fine_tuning=PHASES,
    ),
}


@pytest.mark.parametrize(
    ("case", "how"),
    [
        *((case, "finished") for case in MODULES),
        *((case, how) for case in ("TrainingPractices", "CheckpointMixin") for how in WAYS),
    ],
)
def test_a_new_fit_of_the_same_module(case: str, how: str, tmp_path: Path) -> None:
    found = []
    for name in ("same", "fresh"):
        folder, module = tmp_path / name, MODULES[case]()
        initial = copy.deepcopy(module.state_dict())
        first_fit(how, module, [], folder / "first", enable_checkpointing=True)
        if name == "same":
            module = COPIES.get(how, lambda one: one)(module)
            module.load_state_dict(initial)
        else:
            module = MODULES[case]()
        found.append(outcome(fit(module, [], "other", folder, enable_checkpointing=True), module))
    same, fresh = found
    assert not differences(same, fresh, {str(tmp_path / "same"): str(tmp_path / "fresh")})
