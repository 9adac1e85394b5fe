"""Which logged value a callback sees: of several dataloaders, and only when it is new."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import (
    BestCheckpoint,
    EarlyStopping,
    LearningCurves,
    LearningRateScheduler,
    ProgressiveUnfreezing,
)
from lightning_practices.schedules import LearningRateSchedule
from tests import processes
from tests.callbacks.scripted import FILTERS, same, saves, state_of, trainer_of

pytestmark = [
    *FILTERS,
    pytest.mark.filterwarnings("ignore:The number of training batches.*logging interval"),
]

STEPS = 2  # an epoch
DIP = (3.0, 1.0, 2.0, 2.0, 2.0, 2.0)  # best at the second validation
FALLING = (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
SECOND = "val_loss/dataloader_idx_1"

Log = Callable[["Net", int, int], None]


class Net(LightningModule):
    """Logs by ``log``, a function of the module, the dataloader and the number of validations."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)
        self.write = log
        self.first = torchmetrics.MeanMetric()
        self.second = torchmetrics.MeanMetric()
        self.validations = 0
        self.seen: dict[int, dict[str, Tensor]] = {}  # weights by step, at each validation
        self.rates: list[float] = []
        self.trained: list[bool] = []  # by step: whether the body is trained
        self.tested: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch["a"] + batch["b"] if isinstance(batch, dict) else batch
        self.trained.append(self.body.weight.requires_grad)
        loss: Tensor = self.head(self.body(x)).square().mean()
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.write(self, dataloader_idx, self.validations)

    @override
    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.seen[self.trainer.global_step] = state_of(self)
            self.validations += 1

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.tested.append(state_of(self))

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(rows: int = 2 * STEPS, size: int = 2) -> DataLoader[Tensor]:
    data = list(torch.randn(rows, 2, generator=torch.Generator().manual_seed(1)))
    return DataLoader(data, batch_size=size)  # type: ignore[arg-type]


def two() -> list[DataLoader[Tensor]]:
    return [loader(3, 2), loader(4, 2)]


def fit(
    module: Net,
    *callbacks: Callback,
    val: Any = None,
    train: Any = None,
    resume: Path | None = None,
    **options: Any,
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": 6} | options)
    trainer.fit(
        module,
        loader() if train is None else train,
        two() if val is None else val,
        ckpt_path=resume,
    )
    return trainer


def by_suffix(module: Net, index: int, count: int) -> None:
    module.log("val_loss", (FALLING, DIP)[index][count])


def by_own_name(module: Net, index: int, count: int) -> None:
    name = ("val_loss/first", SECOND)[index]
    module.log(name, (FALLING, DIP)[index][count], add_dataloader_idx=False)


def by_metric(module: Net, index: int, count: int) -> None:
    metric = (module.first, module.second)[index]
    metric.update((FALLING, DIP)[index][count])
    module.log("val_loss", metric)


def by_one_alone(module: Net, index: int, count: int) -> None:
    if index == 1:
        module.log("val_loss", DIP[count])


@pytest.mark.parametrize("log", [by_suffix, by_own_name, by_metric, by_one_alone])
@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_every_callback_sees_the_value_of_one_of_several_dataloaders(
    log: Log, interval: float, tmp_path: Path
) -> None:
    stopping = EarlyStopping(SECOND, patience=3)
    best = BestCheckpoint(SECOND, dirpath=tmp_path)
    plateau = LearningRateSchedule("plateau", patience=1, divisor=10)
    rate = LearningRateScheduler(plateau, SECOND)
    phases: list[dict[str, Any]] = [
        {"blocks": ["head"], "until": {"plateau": {"monitor": SECOND, "patience": 1}}},
        {"blocks": ["body"]},
    ]
    curves = LearningCurves(tmp_path / "curves.svg", monitor=SECOND)
    callbacks = stopping, best, rate, ProgressiveUnfreezing(phases, decay=1.0), curves
    module = Net(log)
    trainer = fit(module, *callbacks, val_check_interval=interval)
    between = STEPS * interval  # steps from one validation to the next
    assert trainer.global_step == 5 * between  # the best, and three more
    assert (stopping.best_step, stopping.best_score.item()) == (2 * between, 1.0)
    assert (curves.best_step, curves.best_score) == (2 * between, 1.0)
    assert best.best_model_score == 1.0
    assert f"step={2 * between:.0f}.ckpt" in best.best_model_path
    # The third validation is the first without an improvement, the fourth the second.
    assert module.trained.index(True) == 3 * between
    assert module.rates == pytest.approx([0.1] * int(4 * between) + [0.01] * int(between))
    trainer.test(module, two(), ckpt_path="best", verbose=False)
    assert len(module.tested) == 4
    assert all(same(state, module.seen[int(2 * between)]) for state in module.tested)


@pytest.mark.parametrize("mode", ["max_size", "min_size"])
def test_dataloaders_that_are_combined(mode: Any) -> None:
    def log(module: Net, index: int, count: int) -> None:
        module.log("val_loss", DIP[count])

    def train() -> Any:
        return {"a": loader(), "b": loader()}

    stopping = EarlyStopping("val_loss", patience=2)
    module = Net(log)
    rate = LearningRateScheduler(LearningRateSchedule("plateau", patience=1))
    combined = CombinedLoader(train(), mode)
    trainer = fit(module, stopping, rate, train=combined, val=CombinedLoader(train(), mode))
    assert (stopping.best_step, trainer.global_step) == (2 * STEPS, 4 * STEPS)
    again = EarlyStopping(SECOND, patience=2)  # dicts of loaders, one after the other in validation
    trainer = fit(Net(by_suffix), again, train=train(), val=train())
    assert (again.best_step, trainer.global_step) == (2 * STEPS, 4 * STEPS)


# Values that aren't new.


def test_a_value_that_some_validations_log_counts_only_then() -> None:
    def sometimes(module: Net, index: int, count: int) -> None:
        if count % 2 == 0:
            module.log("val_loss", (3.0, 1.0, 2.0)[count // 2])

    stopping = EarlyStopping("val_loss", patience=2)
    rate = LearningRateScheduler(LearningRateSchedule("plateau", patience=0, divisor=10))
    module = Net(sometimes)
    trainer = fit(module, stopping, rate, val=loader())
    assert trainer.current_epoch == 6
    assert (stopping.best_epoch, stopping.wait_count) == (2, 1)
    assert module.rates == pytest.approx([0.1] * 5 * STEPS + [0.01] * STEPS)


@pytest.mark.parametrize("at_epoch_end", [None, True, False])
def test_epochs_without_validation_are_no_checks(at_epoch_end: bool | None) -> None:
    stopping = EarlyStopping(SECOND, patience=2, check_on_train_epoch_end=at_epoch_end)
    trainer = fit(Net(by_suffix), stopping, check_val_every_n_epoch=2, max_epochs=12)
    assert trainer.current_epoch == 8  # validated four times
    assert (stopping.best_epoch, stopping.wait_count) == (3, 2)


class Training(Net):
    """Logs a value at the end of training epochs, beside validations that log another."""

    def __init__(self, values: Sequence[float] = DIP) -> None:
        super().__init__(by_suffix)
        self.values = values

    @override
    def on_train_epoch_end(self) -> None:
        self.log("train_score", self.values[self.current_epoch])


@pytest.mark.filterwarnings("ignore:.*'train_score', which this validation hasn't logged")
@pytest.mark.parametrize(
    "options", [{}, {"val_check_interval": 0.5, "max_epochs": 3}, {"check_val_every_n_epoch": 2}]
)
def test_a_training_epochs_value_is_checked_at_its_end(
    options: dict[str, Any], tmp_path: Path
) -> None:
    stopping = EarlyStopping("train_score", patience=2)
    best = BestCheckpoint("train_score", dirpath=tmp_path)
    fit(Training(), stopping, best, **options)
    assert (stopping.best_epoch, stopping.best_step) == (1, 2 * STEPS)
    assert f"step={2 * STEPS}.ckpt" in best.best_model_path


@pytest.mark.filterwarnings("ignore:.*'train_score', which this validation hasn't logged")
def test_values_of_two_loops_are_checked_once_both_are_new() -> None:
    stopping = EarlyStopping(["train_score", SECOND], patience=2)
    trainer = fit(Training(), stopping, check_val_every_n_epoch=2)
    assert trainer.current_epoch == 6
    assert (stopping.best_epoch, stopping.best_score.item(), stopping.wait_count) == (1, 1.0, 2)


def test_another_trainer_may_validate_at_other_times() -> None:
    stopping = EarlyStopping(SECOND, patience=2, restore_best_weights=False)
    fit(Net(by_suffix), stopping, max_epochs=1)
    assert fit(Net(by_suffix), stopping, val_check_interval=0.5, max_epochs=3).global_step == 4


def test_a_fit_that_is_resumed_between_validation_and_the_epochs_end(tmp_path: Path) -> None:
    whole, saving = (
        EarlyStopping(SECOND, patience=3),
        saves(tmp_path, save_on_train_epoch_end=False),
    )
    fit(Net(by_suffix), whole, saving)
    resumed, module = EarlyStopping(SECOND, patience=3), Net(by_suffix)
    module.validations = 3
    best = BestCheckpoint(SECOND, dirpath=tmp_path / "best")
    trainer = fit(module, resumed, best, resume=tmp_path / f"step={3 * STEPS}.ckpt")
    assert trainer.current_epoch == 5
    assert (resumed.best_step, resumed.wait_count) == (whole.best_step, whole.wait_count)


# Values that never come.


CONSUMERS: dict[str, Callable[[str], Callback]] = {
    "EarlyStopping": EarlyStopping,
    "BestCheckpoint": BestCheckpoint,
    "the plateau schedule": lambda name: LearningRateScheduler(
        LearningRateSchedule("plateau", patience=0), name
    ),
    "phase 1/2 of ProgressiveUnfreezing": lambda name: ProgressiveUnfreezing(
        [
            {"blocks": ["head"], "until": {"plateau": {"monitor": name}}},
            {"blocks": ["body"]},
        ]
    ),
}


@pytest.mark.parametrize("watcher", CONSUMERS)
@pytest.mark.filterwarnings("ignore:monitor=.* has mode=")
def test_a_name_that_nothing_has(watcher: str, tmp_path: Path) -> None:
    def expect(name: str, end: str, log: Log = by_suffix, **options: Any) -> None:
        with pytest.raises(MisconfigurationException) as raised:
            fit(Net(log), CONSUMERS[watcher](name), default_root_dir=tmp_path, **options)
        message = str(raised.value)
        assert message.startswith(f"{watcher} watches {name!r}, but neither validation nor the tra")
        assert message.endswith(end)

    def by_step(module: Net, index: int, count: int) -> None:
        module.log("val_loss", 1.0)

    expect("val_los/dataloader_idx_1", f": did you mean {SECOND!r}?")
    expect(
        "val_loss",
        f": watch 'val_loss/dataloader_idx_0' or {SECOND!r}, or log 'val_loss' in"
        " on_validation_epoch_end",
    )
    expect("accuracy", "logged are: val_loss", by_step, val=loader())


class BySteps(Net):
    by: Any = {}  # noqa: RUF012

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, **self.by)
        return loss


class ByBoth(BySteps):
    by = {"on_step": True, "on_epoch": True}  # noqa: RUF012


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("loss_step", ": 'loss_step' is the value of single steps, watch 'loss_epoch'"),
        ("los", ": did you mean 'loss'?"),
        ("los_epoch", ": did you mean 'loss_epoch'?"),
        ("val_los", ": did you mean 'val_loss/dataloader_idx_0'?"),
    ],
)
def test_a_value_of_steps_and_epochs(name: str, end: str) -> None:
    """Its three names are one in the list of logged values."""
    with pytest.raises(MisconfigurationException) as raised:
        fit(ByBoth(by_suffix), EarlyStopping(name))
    first, second = "val_loss/dataloader_idx_0", SECOND
    assert str(raised.value).endswith(f"; logged are: loss, {first}, {second}{end}")
    fit(ByBoth(by_suffix), EarlyStopping("loss_epoch"))
    fit(ByBoth(by_suffix), EarlyStopping("loss"))


def nothing(module: Net, index: int, count: int) -> None:
    pass


class LogsTraining(Net):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_epoch=True)
        return loss


# How a fit has no validation: by an option of the Trainer, or with a dataloader of no batches.
NO_VALIDATION: dict[str, dict[str, Any]] = {
    "limit": {"limit_val_batches": 0}, "no batches": {"val": loader(0)}
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
@pytest.mark.filterwarnings("ignore:.*watches 'val_loss', but this fit runs no validation")
@pytest.mark.parametrize("watcher", CONSUMERS)
def test_a_validation_that_logs_nothing_or_is_none(watcher: str, tmp_path: Path) -> None:
    def message(name: str, **options: Any) -> str:
        with pytest.raises(MisconfigurationException) as raised:
            fit(LogsTraining(nothing), CONSUMERS[watcher](name), default_root_dir=tmp_path,
                **options)  # fmt: skip
        return str(raised.value).partition("logged are: train_loss")[2]

    says = "; validation has logged nothing: call self.log('val_loss', ...) in validation_step"
    assert message("val_loss") == says
    assert message("distance") == says.replace("val_loss", "distance")
    assert message("train_los") == ": did you mean 'train_loss'?"
    if watcher == "EarlyStopping":  # others have no check without validation
        for options in NO_VALIDATION.values():
            assert message("val_loss", **options).startswith(": this fit runs no validation")


def test_a_value_of_steps_alone() -> None:
    with pytest.raises(MisconfigurationException, match=r": log 'loss' with on_epoch=True$"):
        fit(BySteps(by_suffix), EarlyStopping("loss"))


@pytest.mark.parametrize("watcher", CONSUMERS)
def test_a_validation_in_mid_epoch_warns_at_once(watcher: str, tmp_path: Path) -> None:
    module = Net(by_suffix)
    warns = f"^{watcher} watches 'val_loss', which this validation hasn't logged.*{SECOND!r}"
    options: Any = {"val_check_interval": 0.5, "default_root_dir": tmp_path, "max_epochs": 1}
    with pytest.warns(UserWarning, match=warns), pytest.raises(MisconfigurationException):
        fit(module, CONSUMERS[watcher]("val_loss"), **options)
    with pytest.raises(UserWarning, match=warns):
        fit(module := Net(by_suffix), CONSUMERS[watcher]("val_loss"), **options)
    assert module.validations == 1


@pytest.mark.parametrize("how", NO_VALIDATION)
@pytest.mark.parametrize("watcher", CONSUMERS)
@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
def test_a_fit_without_validation_warns_before_it_begins(
    watcher: str, how: str, tmp_path: Path
) -> None:
    options: Any = {"default_root_dir": tmp_path, **NO_VALIDATION[how]}
    with pytest.raises(UserWarning, match=f"^{watcher} watches 'val_loss', but this fit runs no"):
        fit(module := Net(by_suffix), CONSUMERS[watcher]("val_loss"), **options)
    assert not module.trained


@pytest.mark.parametrize("how", NO_VALIDATION)
@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
@pytest.mark.filterwarnings("ignore:.*watches 'val_loss', but this fit runs no validation")
def test_without_validation_the_last_weights_are_saved(how: str, tmp_path: Path) -> None:
    best = BestCheckpoint("val_loss", dirpath=tmp_path)
    fit(Net(by_suffix), best, max_epochs=2, **NO_VALIDATION[how])
    assert best.best_model_path == ""
    assert torch.load(best.last_model_path, weights_only=True)["global_step"] == 2 * STEPS


# Ranks.


def fit_on_ranks(rank: int, folder: str, sync: bool) -> tuple[Any, ...]:
    def log(module: Net, index: int, count: int) -> None:
        if index == 1 and (sync or module.global_rank == 1):
            module.log("val_loss", DIP[count] + module.global_rank, sync_dist=sync)

    stopping = EarlyStopping(SECOND, patience=2)
    best = BestCheckpoint(SECOND, dirpath=folder)
    rate = LearningRateScheduler(LearningRateSchedule("plateau", patience=1, divisor=10), SECOND)
    module = Net(log)
    trainer = fit(module, stopping, best, rate, devices=2, strategy="ddp", train=loader(4 * STEPS))
    score = best.best_model_score
    assert score is not None
    return trainer.global_step, stopping.best_score.item(), score.item(), module.rates[-1]


@pytest.mark.parametrize(("sync", "score"), [(True, 1.5), (False, 2.0)])
def test_two_ranks(sync: bool, score: float, tmp_path: Path) -> None:
    found = processes.run(fit_on_ranks, [(rank, str(tmp_path), sync) for rank in range(2)])
    assert found == [(4 * STEPS, score, score, 0.1)] * 2
