"""Settings that need a longer fit: one warning with numbers and remedy, and no false warning."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import (
    DropRateSchedule,
    EarlyStopping,
    LearningRateScheduler,
    ProgressiveUnfreezing,
    RetrainFor,
    SnapshotEnsemble,
    WeightAveraging,
)
from lightning_practices.mixins import TrainingPractices
from lightning_practices.schedules import LearningRateSchedule
from tests.callbacks.scripted import trainer_of

EPOCHS, STEPS = 3, 4  # epochs of a fit, and optimizer steps of an epoch


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.neck = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)
        self.phases: list[bool] = []  # by step, whether the body is trained

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.phases.append(next(self.body.parameters()).requires_grad)
        loss: Tensor = self.head(self.neck(self.body(batch))).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", 1.0)

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(count: int = STEPS) -> DataLoader[Tensor]:
    data: Any = torch.ones(count, 2)
    return DataLoader(data)


def fit(*callbacks: Callback, **options: Any) -> Net:
    module = Net()
    trainer = trainer_of(*callbacks, **{"max_epochs": EPOCHS} | options)
    trainer.fit(module, rows(), rows(1))
    return module


def scheduled(name: Any = "cosine", **arguments: Any) -> LearningRateScheduler:
    return LearningRateScheduler(LearningRateSchedule(name, **arguments))


def phased(*ends: dict[str, Any]) -> ProgressiveUnfreezing:
    phases: list[dict[str, Any]] = [
        {"blocks": [name], "until": end} for name, end in zip(("head", "neck"), ends, strict=True)
    ]
    return ProgressiveUnfreezing([*phases, {"blocks": ["body"]}])


FLAT = {"plateau": {"monitor": "val_loss", "patience": 9}}


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (scheduled(warmup_steps=12), "has 12 optimizer steps, and the warmup .* takes 12: the"),
        (scheduled("power", steps=3, warmup_steps=12), "the warmup .* give fewer warmup_steps"),
        (scheduled("plateau", patience=0, warmup_steps=12), "the warmup of the learning rate"),
        (scheduled("step", steps=12), "the step schedule divides the rate after 12: it never does"),
        (scheduled("plateau", patience=2), "has 3 checks, and the plateau .* after 4 checks at"),
        (scheduled("cosine", steps=9), "cosine schedule ends after 9: the rate .* is 0, so leave"),
        (DropRateSchedule(duration=13), "the schedule of DropRateSchedule takes 13: it never"),
        (DropRateSchedule("late", interval="epoch", duration=4), "has 3 epochs, and .* takes 4"),
        (SnapshotEnsemble(2, steps=20), "the 2 cycles of SnapshotEnsemble take 20: it takes 1 sn"),
        (RetrainFor(5, 20), r"has 12 optimizer steps, and RetrainFor\(5, 20\) needs 20, or"),
        (WeightAveraging(start=12), "average for the first time after 13: it never will, so"),
        (phased({"epoch": 2}, {"epoch": 1}), "take 12: the blocks body are never trained"),
        (phased({"step": 9}, {"step": 9, "epoch": 1}), "before the last one take 13: the blocks"),
    ],
)
def test_a_setting_that_has_no_effect(callback: Callback, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        fit(callback)
    assert sum("the fit has" in str(one.message) for one in caught) == 1


@pytest.mark.parametrize(
    ("callback", "options"),
    [
        (scheduled(warmup_steps=11), {}),
        (scheduled("step", steps=11), {}),
        (scheduled("plateau", patience=1), {}),
        (scheduled("plateau", patience=4), {"val_check_interval": 2}),
        (scheduled("cosine", steps=9, floor=0.1), {}),
        (scheduled("plateau", patience=9), {"max_time": {"hours": 1}, "max_epochs": 13}),
        (DropRateSchedule(duration=12), {}),
        (SnapshotEnsemble(2, steps=12), {}),
        (RetrainFor(5, 12), {}),
        (WeightAveraging(), {}),
        (WeightAveraging("swa"), {}),
        (phased({"epoch": 1}, {"epoch": 1}), {}),
        (phased(FLAT, FLAT), {}),
        (scheduled(warmup_steps=12), {"fast_dev_run": True}),
    ],
)
@pytest.mark.filterwarnings("error:the fit has")
def test_settings_that_have_an_effect(callback: Callback, options: dict[str, Any]) -> None:
    fit(callback, **options)


@pytest.mark.parametrize(
    ("patience", "options", "shown"),
    [
        (2, {}, ["the fit has 3 checks of early stopping, and EarlyStopping(patience=2) stops it"]),
        (5, {"val_check_interval": 2}, ["the fit has 6 checks of early stopping"]),
        (2, {"max_epochs": 1}, ["the fit has 1 check of early stopping, and"]),
        (1, {}, []),
        (4, {"val_check_interval": 2}, []),
        (10, {}, []),  # the default
        (20, {"fast_dev_run": True}, []),
    ],
)
def test_a_patience_longer_than_the_fit(
    monkeypatch: pytest.MonkeyPatch, patience: int, options: dict[str, Any], shown: list[str]
) -> None:
    said: list[str] = []
    where = "lightning_practices.callbacks._early_stopping.patience.rank_zero_info"
    monkeypatch.setattr(where, said.append)
    fit(EarlyStopping("val_loss", patience=patience), **options)
    assert len(said) == len(shown)
    assert all(line.startswith(start) for line, start in zip(said, shown, strict=True))


@pytest.mark.parametrize("epochs", [1, 2])
def test_all_practices_are_quiet_in_a_trial(epochs: int) -> None:
    class Practised(TrainingPractices, Net):
        pass

    for averaging in (None, "ema", "swa"):
        module = Practised(weight_averaging=averaging, checkpoint=None)
        trainer_of(max_epochs=epochs).fit(module, rows(), rows(1))


def test_dropout_by_epochs_in_a_fit_of_one() -> None:
    with pytest.warns(UserWarning, match=r"the rates stay 0, so choose interval='step'"):
        fit(DropRateSchedule(interval="epoch"), max_epochs=1)
    fit(DropRateSchedule("early_linear", interval="epoch"), max_epochs=1)
    fit(DropRateSchedule(interval="epoch"), max_epochs=2)


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(3, 4), (8, 16), (100, 13 * 4)],  # of the head alone: an epoch, half of the fit, 50 steps
)
def test_automatic_phases_fit_into_the_fit(epochs: int, steps: int) -> None:
    module = fit(ProgressiveUnfreezing(), max_epochs=epochs)
    assert module.phases.index(True) == steps
