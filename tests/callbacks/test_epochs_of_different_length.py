"""Fits whose epochs differ in length: schedules follow the number of steps, and warn once."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import (
    DropRateSchedule,
    EarlyStopping,
    LearningRateScheduler,
    SnapshotEnsemble,
    WeightAveraging,
)
from lightning_practices.schedules import LearningRateSchedule
from tests.callbacks.scripted import FILTERS, saves, trainer_of

pytestmark = [*FILTERS, pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")]

GROWING, SHRINKING = (2, 4, 6), (6, 4, 2)
DIFFER = "the epochs of this fit differ in length: as epoch 1 has 4 batches .* the fit"


class Changing(LightningModule):
    """The number of batches of each epoch is a given list's; notes rates by step."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dropout = nn.Dropout(0.5)
        self.layer = nn.Sequential(nn.Linear(2, 2), self.dropout)
        self.lengths = lengths
        self.rates: dict[int, float] = {}
        self.drops: dict[int, float] = {}

    @override
    def train_dataloader(self) -> Any:
        rows: Any = torch.ones(self.lengths[self.trainer.current_epoch], 2)
        return DataLoader(rows, batch_size=1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        (group,) = self.trainer.optimizers[0].param_groups
        step = self.trainer.global_step
        self.rates.setdefault(step, group["lr"])
        self.drops.setdefault(step, self.dropout.p)
        loss: Tensor = self.layer(batch).square().mean()
        self.log("loss", 1.0, on_step=False, on_epoch=True)
        return loss

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(
    lengths: tuple[int, ...], *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Changing:
    module = Changing(lengths)
    every = {"reload_dataloaders_every_n_epochs": 1, "max_epochs": len(lengths)}
    trainer_of(*callbacks, **every | options).fit(module, ckpt_path=resume)
    return module


def cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / (steps - 1))) / 2


@pytest.mark.parametrize(
    ("lengths", "totals"), [(GROWING, (6, 10, 12)), (SHRINKING, (18, 14, 12))], ids=str
)
def test_the_learning_rate_ends_with_the_fit(
    lengths: tuple[int, ...], totals: tuple[int, ...]
) -> None:
    with pytest.warns(UserWarning, match=f"{DIFFER} takes {totals[1]} .* rather than") as caught:
        module = fit(lengths, LearningRateScheduler("cosine"))
    assert sum("differ in length" in str(one.message) for one in caught) == 1
    expected, step = {}, 0
    for length, total in zip(lengths, totals, strict=True):
        for _ in range(length):
            expected[step] = cosine(step, total)
            step += 1
    assert module.rates == pytest.approx(expected, abs=1e-12)
    assert module.rates[11] == pytest.approx(0, abs=1e-12)  # only the last rate is 0
    assert all(module.rates[step] > 0.01 for step in range(11))


@pytest.mark.parametrize("options", [{"max_steps": 9}, {"accumulate_grad_batches": 2}], ids=str)
def test_other_limits_of_the_fit(options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="differ in length"):
        module = fit(GROWING, LearningRateScheduler("cosine"), **options)
    last = max(module.rates)
    assert last == {"max_steps": 8, "accumulate_grad_batches": 5}[next(iter(options))]
    assert module.rates[last] == pytest.approx(0, abs=1e-12)


def test_equal_epochs_and_accumulation_that_changes_are_no_change() -> None:
    accumulation = GradientAccumulationScheduler({0: 2, 1: 1})
    module = fit((4, 4, 4), LearningRateScheduler("cosine"), DropRateSchedule(), accumulation)
    assert module.rates == pytest.approx({t: cosine(t, 10) for t in range(10)}, abs=1e-12)


def test_a_given_number_of_steps_is_kept() -> None:
    schedule = LearningRateSchedule("cosine", steps=20)
    module = fit(GROWING, LearningRateScheduler(schedule))
    assert module.rates == pytest.approx({t: cosine(t, 20) for t in range(12)}, abs=1e-12)


def schedules() -> tuple[Callback, ...]:
    return LearningRateScheduler("cosine"), DropRateSchedule()


@pytest.mark.parametrize("step", [2, 6])
def test_resumed_between_epochs(tmp_path: Path, step: int) -> None:
    with pytest.warns(UserWarning, match="differ in length"):
        whole = fit(GROWING, *schedules(), saves(tmp_path, save_on_train_epoch_end=True))
    with pytest.warns(UserWarning, match="differ in length"):
        module = fit(GROWING, *schedules(), resume=tmp_path / f"step={step}.ckpt")
    assert list(module.rates) == list(range(step, 12))
    assert module.rates == {t: whole.rates[t] for t in module.rates}
    assert module.drops == {t: whole.drops[t] for t in module.drops}


@pytest.mark.parametrize("step", [3, 9])
def test_resumed_within_an_epoch(tmp_path: Path, step: int) -> None:
    with pytest.warns(UserWarning, match="differ in length"):
        whole = fit(GROWING, *schedules(), saves(tmp_path, every_n_train_steps=1))
    # Lightning begins the resumed epoch anew, as the loader has no state, and leaves it early.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*differ in length")
        module = fit(GROWING, *schedules(), resume=tmp_path / f"step={step}.ckpt")
    assert module.rates[step] == whole.rates[step]
    assert module.drops[step] == whole.drops[step]
    assert max(module.rates) == 11
    assert module.rates == {t: whole.rates[t] for t in module.rates}


def test_dropout_and_the_known_length() -> None:
    stopping = EarlyStopping("loss", check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="the rates of dropout follow the new number"):
        module = fit(GROWING, DropRateSchedule(), stopping)
    expected = [t / 6 for t in range(2)] + [t / 10 for t in range(2, 6)]
    expected += [t / 12 for t in range(6, 12)]
    assert list(module.drops.values()) == pytest.approx([0.5 * factor for factor in expected])
    assert stopping.fit_steps == 12


def test_a_share_of_the_fit_before_averaging() -> None:
    averaging = WeightAveraging(start=0.5)  # of 6 steps in the first epoch, then of 10
    fit((2, 4, 4), averaging)
    assert averaging.averaged == 5


def test_cycles_of_the_learning_rate_keep_their_length() -> None:
    snapshots = SnapshotEnsemble(cycles=2)
    with pytest.warns(UserWarning, match="SnapshotEnsemble keeps the lengths of its cycles"):
        fit(GROWING, snapshots)
    assert snapshots.steps_taken == [3, 6, 9, 12]
