"""Early stopping: real fits on scripted losses."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import EMAWeightAveraging, Timer
from lightning_utilities.core import rank_zero
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping
from tests import processes
from tests.callbacks.scripted import (
    DIP,
    FILTERS,
    STEPS,
    At,
    Scripted,
    fit,
    interrupt,
    loaders,
    same,
    state_of,
    stop,
    trainer_of,
    verdict,
)

pytestmark = FILTERS


# The best weights come back, whatever ends training.


def end_by_timer() -> list[Callback]:
    timer = Timer({"hours": 1})
    elapse = {"time_elapsed": {"train": 3601}}
    return [At(15, lambda trainer: timer.load_state_dict(elapse)), timer]


@pytest.mark.parametrize(
    ("callbacks", "options", "steps"),
    [
        pytest.param([], {}, 20, id="patience"),
        pytest.param([], {"max_epochs": 4}, 16, id="max_epochs"),
        pytest.param([], {"max_steps": 14}, 14, id="max_steps"),
        pytest.param([At(14, stop)], {}, 15, id="should_stop"),
        pytest.param(end_by_timer(), {}, 16, id="max_time"),
        pytest.param([At(14, interrupt)], {}, 14, id="KeyboardInterrupt"),
    ],
)
def test_the_best_weights_come_back(
    callbacks: list[Callback], options: dict[str, Any], steps: int
) -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}
    trainer = trainer_of(stopping, *callbacks, **options)
    try:
        trainer.fit(module, *loaders())
    except SystemExit:
        assert steps == 14
    assert trainer.global_step == steps
    assert stopping.stopped_epoch == (4 if steps == 20 else 0)
    assert (stopping.best_epoch, stopping.best_step) == (1, 8)
    assert stopping.best_score == 1
    assert not same(module.seen[8], module.seen[12])
    assert same(module.state_dict(), module.seen[8])
    assert places == {name: value.data_ptr() for name, value in module.state_dict().items()}
    parameters = trainer.optimizers[0].param_groups[0]["params"]
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "options", "values", "every", "best", "steps"),
    [
        pytest.param({"mode": "max"}, {}, [1, 3, 2, 2, 2], 4, 8, 20, id="max"),
        pytest.param({"min_delta": 0.5}, {}, [3, 2, 1.5, 1.6, 1.7], 4, 8, 20, id="min_delta"),
        pytest.param({"check_on_train_epoch_end": True}, {}, DIP, 4, 8, 20, id="train_epoch_end"),
        pytest.param({"check_on_train_epoch_end": False}, {}, DIP, 4, 8, 20, id="validation_end"),
        pytest.param(
            {"patience": 1}, {"check_val_every_n_epoch": 2}, DIP, 8, 16, 24, id="2 epochs"
        ),
        pytest.param({}, {"val_check_interval": 0.5}, DIP, 2, 4, 10, id="twice an epoch"),
        pytest.param({}, {"val_check_interval": 0.25}, [4, 3, 1, 2, 2, 2], 1, 3, 6, id="each step"),
        pytest.param({"stopping_threshold": 0.5}, {}, [3, 2, 0.4], 4, 12, 12, id="good enough"),
        pytest.param({"divergence_threshold": 9}, {}, [3, 2, 10], 4, 8, 12, id="hopeless"),
        pytest.param({}, {}, [3, 2, torch.nan], 4, 8, 12, id="nan"),
        pytest.param({}, {}, [3, 2, -torch.inf], 4, 8, 12, id="minus infinity"),
        pytest.param(
            {"check_finite": False}, {}, [3, 2, torch.nan, 9, 9], 4, 8, 20, id="nan is bad"
        ),
        pytest.param({}, {"precision": "64-true"}, DIP, 4, 8, 20, id="double"),
    ],
)
@pytest.mark.filterwarnings("ignore:monitor=.* has mode=", "ignore:.*, as val_loss is")
def test_best_and_stop(
    arguments: dict[str, Any],
    options: dict[str, Any],
    values: Sequence[float],
    every: int,
    best: int,
    steps: int,
) -> None:
    module, stopping = (
        Scripted(values, every),
        EarlyStopping("val_loss", **{"patience": 3, **arguments}),
    )
    trainer = fit(module, stopping, **options)
    assert trainer.global_step == steps
    assert stopping.best_step == best
    assert stopping.best_epoch == (best - 1) // STEPS
    assert stopping.stopped_epoch == (steps - 1) // STEPS
    assert stopping.best_score == values[best // every - 1]
    assert same(module.state_dict(), module.seen[best])
    if "precision" in options:
        assert next(module.parameters()).dtype == torch.float64


def test_a_value_that_is_not_finite_ends_the_fit_with_a_warning() -> None:
    message = "EarlyStopping ends this fit at step 12, in epoch 2, as val_loss is nan: look for"
    with pytest.warns(UserWarning, match=message):
        fit(Scripted([3, 2, torch.nan]), EarlyStopping("val_loss"))
    fit(Scripted([3, 2, torch.nan, 1]), EarlyStopping("val_loss", check_finite=False), max_epochs=4)
    fit(Scripted([3, 2, torch.nan, 1]), EarlyStopping("val_loss"), max_epochs=4, min_epochs=4)


def test_a_compiled_module() -> None:
    module = Scripted()
    module.net.compile(backend="eager")
    compiled = torch.compile(module, backend="eager")
    trainer_of(EarlyStopping("val_loss", patience=3)).fit(compiled, *loaders())  # type: ignore[arg-type]
    assert same(module.state_dict(), module.seen[8])


@pytest.mark.gpu
def test_the_copy_is_in_pinned_cpu_memory(device: str) -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    devices: list[set[str]] = []

    class Look(Callback):
        @override
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            devices.append({value.device.type for value in pl_module.state_dict().values()})

    fit(module, stopping, Look(), accelerator=device)
    assert devices == [{device}]
    assert stopping._weights._best is not None
    kept = stopping._weights._best.values
    assert all(value.device.type == "cpu" and value.is_pinned() for value in kept.values())
    assert all(torch.equal(v, module.seen[8][k].cpu()) for k, v in module.state_dict().items())


def test_without_restoring_the_last_weights_stay() -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3, restore_best_weights=False)
    fit(module, stopping)
    assert verdict(stopping) == (1, 8, 1.0, 3)
    assert not stopping._weights
    assert same(module.state_dict(), module.seen[20])


# The minimum length of training.


@pytest.mark.parametrize("at_train_epoch_end", [True, False])
@pytest.mark.parametrize("options", [{"min_epochs": 5}, {"min_steps": 20}])
def test_a_verdict_before_the_minimum_does_not_stick(
    options: dict[str, Any], at_train_epoch_end: bool
) -> None:
    values = [5, 6, 7, 1, 2, 0.5, 3, 3]  # patience is out after epoch 2, and again after epoch 7
    arguments: dict[str, Any] = {
        "patience": 2,
        "check_on_train_epoch_end": at_train_epoch_end,
    }
    lightning = fit(Scripted(values), LightningEarlyStopping("val_loss", **arguments), **options)
    assert lightning.current_epoch == 5
    module, stopping = Scripted(values), EarlyStopping("val_loss", **arguments)
    trainer = fit(module, stopping, max_epochs=20, **options)
    assert (trainer.current_epoch, stopping.stopped_epoch, stopping.best_step) == (8, 7, 24)
    assert same(module.state_dict(), module.seen[24])


@pytest.mark.parametrize("at_train_epoch_end", [True, False])
@pytest.mark.parametrize("options", [{"min_epochs": 5}, {"min_steps": 20}])
def test_a_verdict_that_still_holds_stops_at_the_minimum(
    options: dict[str, Any], at_train_epoch_end: bool
) -> None:
    stopping = EarlyStopping("val_loss", patience=2, check_on_train_epoch_end=at_train_epoch_end)
    trainer = fit(Scripted([5, 6, 7, 7, 7, 7]), stopping, **options)
    assert (trainer.current_epoch, trainer.global_step, stopping.stopped_epoch) == (5, 20, 4)


def test_a_stop_that_another_asked_for_is_left_alone() -> None:
    trainer = fit(Scripted(), EarlyStopping("val_loss", patience=3), At(2, stop), min_epochs=3)
    assert trainer.current_epoch == 3


# Nothing to restore, and what can't be.


class Silent(Scripted):
    @override
    def on_validation_epoch_end(self) -> None:
        self.seen[self.trainer.global_step] = state_of(self)


def test_a_value_that_was_never_logged() -> None:
    with pytest.raises(MisconfigurationException, match="EarlyStopping watches 'val_loss', but"):
        fit(Silent(), EarlyStopping("val_loss", patience=3))
    module, stopping = Silent(), EarlyStopping("val_loss", strict=False)
    fit(module, stopping, max_epochs=2)
    assert (stopping.best_epoch, stopping.best_step) == (None, None)
    assert same(module.state_dict(), module.seen[8])


def test_a_fit_without_a_check() -> None:
    module = Scripted()
    fit(module, EarlyStopping("val_loss", strict=False), max_steps=3)
    initial = Scripted()
    fit(initial, max_steps=3)
    assert same(module.state_dict(), initial.state_dict())


def test_fast_dev_run() -> None:
    stopping = EarlyStopping("val_loss", patience=3)
    trainer_of(stopping, fast_dev_run=True).fit(Scripted(), *loaders())
    assert stopping.best_step is None


def test_the_report_is_one_line_and_only_if_weights_came_back() -> None:
    lines: list[str] = []

    class Listen(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    # Whichever of the twin packages was imported last has put its own logger here.
    logger, handler = rank_zero.log, Listen()
    logger.addHandler(handler)
    try:
        fit(Scripted(), EarlyStopping("val_loss", patience=3))
        (line,) = (line for line in lines if "EarlyStopping" in line)
        assert line == (
            "EarlyStopping: the module has the best weights, of epoch 1, step 8 (val_loss=1)"
        )
        lines.clear()
        fit(Scripted(), EarlyStopping("val_loss", strict=False), max_steps=3)
        fit(Scripted(), EarlyStopping("val_loss", restore_best_weights=False))
        assert not [line for line in lines if "EarlyStopping" in line]
    finally:
        logger.removeHandler(handler)


def test_invalid_mode() -> None:
    with pytest.raises(ValueError, match="mode has to be 'min' or 'max', but got 'lowest'"):
        EarlyStopping("val_loss", mode="lowest")  # type: ignore[arg-type]


def test_averaged_weights() -> None:
    with pytest.raises(MisconfigurationException, match="EMAWeightAveraging validates averaged"):
        fit(Scripted(), EarlyStopping("val_loss", patience=3), EMAWeightAveraging())


def test_two_that_would_restore() -> None:
    first, second = (
        EarlyStopping("val_loss", patience=3),
        EarlyStopping("accuracy", mode="max", strict=False),
    )
    with pytest.raises(MisconfigurationException, match="'val_loss' and of 'accuracy' would both"):
        fit(Scripted(), first, second)
    second.restore_best_weights = False
    fit(Scripted(), first, second)


# Two ranks.


class Uneven(Scripted):
    """Rank 0 sees 3, 1, 2, 2, 2 and rank 1 sees 3, 5, 0, 2.5, 9: on average 3, 3, 1, 2.25, 5.5."""

    @override
    def value(self) -> float:
        scripts: list[list[float]] = [[3, 1, 2, 2, 2, 2], [3, 5, 0, 2.5, 9, 9]]
        script = scripts[self.trainer.global_rank]
        return script[self.trainer.global_step // self.every - 1]


def test_two_ranks_agree(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = processes.run(fit_on_two_ranks, [()] * 2)
    for rank in ranks:
        assert rank["verdict"] == (2, 6, 1.0, 2)
        assert rank["epochs"] == 5
        assert same(rank["weights"], rank["seen"][6])  # running statistics: of each rank's own data
        assert not same(rank["weights"], rank["seen"][10])
    assert [rank["logged"] for rank in ranks] == [2, 9]  # each its own: the mean is ours alone
    first, second = ({k: v for k, v in r["weights"].items() if "running" not in k} for r in ranks)
    assert same(first, second)
    assert capsys.readouterr().out.count("EarlyStopping:") == 1


def fit_on_two_ranks() -> dict[str, Any]:
    module, stopping = Uneven(every=STEPS // 2), EarlyStopping("val_loss", patience=2)
    trainer = fit(module, stopping, devices=2, strategy="ddp")
    return {
        "verdict": verdict(stopping),
        "epochs": trainer.current_epoch,
        "logged": trainer.callback_metrics["val_loss"].item(),
        "weights": state_of(module),
        "seen": module.seen,
    }
