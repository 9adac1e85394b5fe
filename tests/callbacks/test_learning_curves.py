"""Learning curves: what is noted of a fit, and when it is drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics import MeanMetric
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping, GradientClipping
from lightning_practices.callbacks._curves import learning_curves as _learning_curves
from lightning_practices.callbacks._curves.series import History
from tests.callbacks.curves import (
    BATCHES,
    RATE,
    Drawn,
    Logged,
    curves_in,
    fit,
    loaders,
    stand_in,
    trainer_of,
)
from tests.callbacks.scripted import FILTERS, At, fail, interrupt, stop

pytestmark = [*FILTERS, pytest.mark.usefixtures("drawn")]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return stand_in(monkeypatch)


def rates(*steps: int) -> list[tuple[int, float]]:
    return [(step, RATE * (1 / (1 + step))) for step in steps]


# What is noted.


def test_everything_that_is_logged_is_noted_once(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=3)
    fit(Logged(), curves)
    assert curves.history == {
        "lr-SGD": rates(0, 1, 3, 4, 6, 8, 9, 12),
        "train_loss_step": [(t, float(t)) for t in (1, 3, 4, 6, 8, 9, 12)],
        "val_loss": [(4, 3.0), (8, 1.0), (12, 2.0)],
        "epoch": [(4, 1.0), (8, 2.0), (12, 3.0)],
        "same": [(t, 7.0) for t in (1, 3, 4, 6, 8, 9, 12)],
        "train_loss_epoch": [(4, 2.5), (8, 6.5), (12, 10.5)],
        "late": [(4, 0.0), (8, 1.0), (12, 2.0)],
    }
    assert (curves.best_step, curves.best_score) == (8, 1.0)


def test_steps_are_noted_as_often_as_the_trainer_logs(tmp_path: Path) -> None:
    curves = curves_in(tmp_path)
    fit(Logged(), curves, log_every_n_steps=2)
    assert [step for step, _ in curves.history["train_loss_step"]] == [1, 2, 4, 6, 8, 10, 12]


def test_a_trainer_that_logs_no_steps(tmp_path: Path) -> None:
    curves = curves_in(tmp_path)
    fit(Logged(), curves, log_every_n_steps=0)
    assert [step for step, _ in curves.history["train_loss_step"]] == [1, 4, 8, 12]


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=1)
    fit(Logged(), curves, accumulate_grad_batches=2)
    assert curves.history["train_loss_step"] == [(t, 2.0 * t) for t in range(1, 7)]
    assert curves.history["val_loss"] == [(2, 3.0), (4, 1.0), (6, 2.0)]
    assert [step for step, _ in curves.history["lr-SGD"]] == [*range(7)]


def test_several_checks_an_epoch(tmp_path: Path) -> None:
    curves = curves_in(tmp_path)
    fit(Logged(), curves, val_check_interval=2)
    assert curves.history["val_loss"] == [
        (2, 3.0), (4, 3.0), (6, 1.0), (8, 1.0), (10, 2.0), (12, 2.0)
    ]  # fmt: skip
    assert curves.best_step == 6


class Two(Logged):
    """Two optimizers, the second with two parameter groups, stepped in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        self.manual_backward(self.other(self.net(batch)).square().mean())
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    @override
    def configure_optimizers(self) -> Any:
        groups = [
            {"params": self.other[0].parameters(), "lr": torch.tensor(0.3), "name": "first"},
            {"params": self.other[1].parameters(), "lr": 0.4},
        ]
        return [torch.optim.SGD(self.net.parameters(), lr=0.2), torch.optim.SGD(groups)]


def test_several_optimizers_by_hand(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=3)
    trainer = fit(Two(), curves, max_epochs=1)
    assert trainer.global_step == 2 * BATCHES
    steps = [0, 2, 4, 6]  # the first, and those at or after 3 and 6
    assert curves.history["train_loss_step"] == [(2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0)]
    assert curves.history["lr-SGD"] == [(step, 0.2) for step in steps]
    first = torch.tensor(0.3).item()
    assert curves.history["lr-SGD-1/first"] == [(step, first) for step in steps]
    assert curves.history["lr-SGD-1/pg2"] == [(step, 0.4) for step in steps]


def test_rates_that_a_scheduler_changes_in_place(tmp_path: Path) -> None:
    class InPlace(Logged):
        @override
        def configure_optimizers(self) -> Any:
            rate = torch.tensor(RATE, dtype=torch.float64)
            optimizer = torch.optim.SGD(self.parameters(), lr=rate)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    curves = curves_in(tmp_path, every_n_train_steps=1)
    fit(InPlace(), curves, max_epochs=1)
    assert curves.history["lr-SGD"] == rates(0, 1, 2, 3, 4)


def test_a_metric_object_is_computed_once(tmp_path: Path) -> None:
    computed: list[int] = []

    class Mean(MeanMetric):
        @override
        def compute(self) -> Any:
            computed.append(1)
            return super().compute()

    class Object(Logged):
        def __init__(self) -> None:
            super().__init__()
            self.mean = Mean()

        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.mean.update(float(batch_idx))
            self.log("mean", self.mean, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    fit(Object(), max_epochs=2)
    without = len(computed)
    curves = curves_in(tmp_path, every_n_train_steps=1)
    fit(Object(), curves, max_epochs=2)
    assert len(computed) == 2 * without
    assert curves.history["mean"] == [(4, 1.5), (8, 1.5)]


def test_rates_are_noted_once_beside_lightnings_monitor(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=2)
    logger = CSVLogger(tmp_path)
    fit(Logged(), curves, LearningRateMonitor(), logger=logger, log_every_n_steps=1, max_epochs=1)
    assert curves.history["lr-SGD"] == rates(0, 1, 2, 4)


def test_norms_of_gradients(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=1)
    logger = CSVLogger(tmp_path)
    options: dict[str, Any] = {"logger": logger, "log_every_n_steps": 2, "max_epochs": 1}
    fit(Logged(), GradientClipping(1e-3), curves, **options)
    assert [step for step, _ in curves.history["grad_norm"]] == [2, 4]
    steps, clipped = zip(*curves.history["grad_norm_clipped"], strict=True)
    assert steps == (2, 4)
    assert clipped == pytest.approx([1e-3, 1e-3])


def test_only_some_metrics(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, metrics=["train_loss_e*"], monitor="val_loss")
    fit(Logged(), curves)
    assert curves.history.keys() == {"lr-SGD", "epoch", "train_loss_epoch", "val_loss"}
    with pytest.warns(UserWarning, match=r"nothing logged matches 'accuracy' of `metrics`; .*late"):
        fit(Logged(), curves_in(tmp_path, metrics=["late", "accuracy"]))


def test_steps_wait_for_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    flush = History.flush

    def noted(history: History) -> None:
        asked.append(trainer.global_step)
        flush(history)

    monkeypatch.setattr(History, "flush", noted)
    trainer = trainer_of(curves_in(tmp_path, every_n_train_steps=1))
    trainer.fit(Logged(), *loaders())
    assert set(asked) == {12}  # the end


# The best.


class Monitored(Logged):
    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("acc", self.values[self.trainer.current_epoch], on_step=True, on_epoch=True)
        return loss


@pytest.mark.parametrize(
    ("arguments", "stopping", "best"),
    [
        ({}, None, ("val_loss", 8, 1.0)),
        ({"monitor": "val_loss", "mode": "max"}, None, ("val_loss", 16, 4.0)),
        ({"monitor": "acc", "mode": "max"}, None, ("acc_epoch", 16, 4.0)),
        ({"monitor": "late"}, EarlyStopping("val_loss", patience=3), ("late", 4, 0.0)),
        ({}, EarlyStopping("acc", mode="max"), ("acc_epoch", 16, 4.0)),
        ({}, LightningEarlyStopping("late", mode="max"), ("late", 16, 3.0)),
        ({}, EarlyStopping("val_loss", min_delta=2.5), ("val_loss", 4, 3.0)),
        ({"monitor": "val_loss"}, EarlyStopping("val_loss", min_delta=2.5), ("val_loss", 4, 3.0)),
        (
            {"monitor": "val_loss", "mode": "max"},
            EarlyStopping("val_loss", patience=3),
            ("val_loss", 16, 4.0),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:monitor=.* has mode=")
def test_the_best_is_marked(
    arguments: dict[str, Any], stopping: Callback | None, best: Any, tmp_path: Path, drawn: Drawn
) -> None:
    curves = curves_in(tmp_path, **arguments)
    fit(Monitored(), curves, *([stopping] if stopping else []), max_epochs=4)
    assert drawn.best == [best]
    assert (curves.best_step, curves.best_score) == best[1:]


@pytest.mark.filterwarnings("ignore:monitor=.* has mode=")
def test_nothing_to_mark(tmp_path: Path, drawn: Drawn) -> None:
    fit(Logged([float("nan")] * 3), curves_in(tmp_path))
    with pytest.warns(UserWarning, match=r"marks no best step, as 'val_acc' was never .*val_loss"):
        fit(Logged(), curves := curves_in(tmp_path, monitor="val_acc"))
    assert drawn.best == [None, None]
    assert (curves.best_step, curves.best_score) == (None, None)


# When it is drawn.


@pytest.mark.parametrize(
    ("callback", "options", "steps"),
    [
        pytest.param(None, {}, 12, id="max_epochs"),
        pytest.param(None, {"max_steps": 6}, 6, id="max_steps"),
        pytest.param(At(6, stop), {}, 7, id="should_stop"),
        pytest.param(At(6, interrupt), {}, 6, id="KeyboardInterrupt"),
        pytest.param(At(6, fail), {}, 6, id="an exception"),
    ],
)
def test_the_end_is_drawn_whatever_it_is(
    callback: Callback | None, options: dict[str, Any], steps: int, tmp_path: Path, drawn: Drawn
) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=1)
    trainer = trainer_of(curves, *([callback] if callback else []), **options)
    try:
        trainer.fit(Logged(), *loaders())
    except (SystemExit, ValueError):
        assert steps == 6
    assert drawn.steps == [steps]
    assert curves.history["train_loss_step"] == [(t, float(t)) for t in range(1, steps + 1)]
    assert (tmp_path / "curves.png").read_bytes() == b"a picture"
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_whenever_it_is_cheap(
    tmp_path: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()

    class Slow(Callback):  # 20 s a step
        @override
        def on_train_batch_start(self, *_: Any) -> None:
            clock.now += 20.0

    def draw(*arguments: Any) -> None:
        clock.now += 0.7
        drawn.draw(*arguments)

    monkeypatch.setattr(_learning_curves, "time", clock)
    monkeypatch.setattr(_learning_curves, "draw", draw)
    fit(Logged(), Slow(), curves_in(tmp_path, every_n_train_steps=1))
    # After the first 50 s, then whenever 70 s are over; and the end.
    assert drawn.steps == [3, 7, 11, 12]


def test_every_other_epoch(tmp_path: Path, drawn: Drawn) -> None:
    fit(Logged(), curves_in(tmp_path, every_n_epochs=2), max_epochs=5)
    assert drawn.steps == [8, 16, 20]


def test_a_trial_run_draws_nothing(tmp_path: Path, drawn: Drawn) -> None:
    curves = curves_in(tmp_path)
    fit(Logged(), curves, fast_dev_run=True)
    assert not drawn.titles
    assert curves.history == {}
    assert not list(tmp_path.iterdir())


def test_a_fit_that_fails_before_it_starts_leaves_the_picture_of_the_last(
    tmp_path: Path, drawn: Drawn
) -> None:
    class Broken(Callback):
        @override
        def setup(self, *_: Any, **__: Any) -> None:
            raise ValueError("a user's mistake")

    fit(Logged(), curves := curves_in(tmp_path))
    with pytest.raises(ValueError, match="a user's mistake"):
        fit(Logged(), Broken(), curves)
    assert drawn.steps == [12]


def test_validation_alone_is_no_fit(tmp_path: Path, drawn: Drawn) -> None:
    curves = curves_in(tmp_path)
    module = Logged()
    trainer = fit(module, curves)
    before = curves.history
    trainer.validate(module, loaders()[1], verbose=False)
    assert curves.history == before
    assert len(drawn.titles) == 1


def test_a_new_fit_starts_anew_and_a_longer_one_goes_on(tmp_path: Path, drawn: Drawn) -> None:
    curves = curves_in(tmp_path)
    fit(Logged([9.0]), curves, max_epochs=1)
    module = Logged()
    trainer = fit(module, curves, max_epochs=2)
    assert curves.history["val_loss"] == [(4, 3.0), (8, 1.0)]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, *loaders())
    assert curves.history["val_loss"] == [(4, 3.0), (8, 1.0), (12, 2.0)]
    assert drawn.titles[-1] == "Logged: 12 optimizer steps, 3 epochs"


def test_norms_of_clipping_are_drawn_without_a_logger(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=1)
    fit(Logged(), curves, GradientClipping(0.5), log_every_n_steps=1)
    assert all(value <= 0.5 + 1e-5 for _, value in curves.history["grad_norm_clipped"])
