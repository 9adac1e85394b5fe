"""Early stopping by several values, and by checks within an epoch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping
from tests.callbacks.scripted import (
    DIP,
    FILTERS,
    STATE,
    Scripted,
    Stateful,
    fit,
    same,
    saves,
    state_of,
    trainer_of,
    verdict,
)

pytestmark = FILTERS

# Several values.

ACCURACY = (0.1, 0.2, 0.3, 0.35, 0.32, 0.34, 0.3, 0.2)  # best after epoch 3


class Two(Scripted):
    """Logs the accuracy of a script too."""

    def __init__(self, accuracy: Any = ACCURACY, **options: Any) -> None:
        super().__init__(**options)
        self.accuracy = accuracy

    @override
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("accuracy", self.accuracy[max(self.trainer.global_step // self.every - 1, 0)])


def both(patience: int = 3, **options: Any) -> EarlyStopping:
    return EarlyStopping(
        ["val_loss", "accuracy"], mode=["min", "max"], patience=patience, **options
    )


def test_training_goes_on_while_one_of_them_improves() -> None:
    module, stopping = Two(), both()
    trainer = fit(module, stopping)
    assert (trainer.current_epoch, stopping.stopped_epoch) == (7, 6)  # 3 checks after epoch 3
    assert verdict(stopping) == (1, 8, 1.0, 5)  # of the first
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert stopping.stopping_reason_message is not None
    assert "val_loss did not improve in the last 5" in stopping.stopping_reason_message
    assert "accuracy did not improve in the last 3" in stopping.stopping_reason_message
    assert same(module.state_dict(), module.seen[8])


def test_the_last_to_improve_may_be_the_first() -> None:
    module = Two(accuracy=[0.9, *ACCURACY])
    stopping = both(2)
    trainer = fit(module, stopping)
    assert (trainer.current_epoch, verdict(stopping)) == (4, (1, 8, 1.0, 2))


@pytest.mark.parametrize(
    ("min_delta", "epochs"),
    [([0.0, 0.25], 6), (0.25, 6), ([0.0, 0.5], 4)],  # more than 0.25 is gained by epoch 3
)
def test_each_has_its_least_change(min_delta: Any, epochs: int) -> None:
    accuracy = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5]
    trainer = fit(Two(accuracy), both(2, min_delta=min_delta))
    assert trainer.current_epoch == epochs


@pytest.mark.filterwarnings("ignore:EarlyStopping ends this fit at step 8, in epoch 1")
@pytest.mark.parametrize(("check_finite", "epochs"), [(True, 2), (False, 5)])
def test_one_that_is_not_finite_stops_alone(check_finite: bool, epochs: int) -> None:
    stopping = both(check_finite=check_finite)
    trainer = fit(Two([0.1, torch.nan, *6 * [torch.nan]]), stopping)
    assert trainer.current_epoch == epochs
    reason = EarlyStoppingReason.NON_FINITE_METRIC
    assert (stopping.stopping_reason is reason) == check_finite
    assert stopping.best_step == 8


def test_not_yet_stopped_is_no_reason() -> None:
    stopping = both()
    fit(Two(), stopping, max_epochs=6)  # the first is out of patience, the second not
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    assert (stopping.stopped_epoch, stopping.stopping_reason_message) == (0, None)


def test_it_says_that_it_stops_only_if_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    note = staticmethod(lambda trainer, reason, rank_zero_only: said.append(reason))
    monkeypatch.setattr(EarlyStopping, "_log_info", note)
    fit(Two(), both(verbose=True))
    assert ["Signaling Trainer to stop" in reason for reason in said] == 4 * [False] + [True]
    assert sum("accuracy improved" in reason for reason in said) == 4


def test_one_of_them_was_not_logged() -> None:
    with pytest.raises(MisconfigurationException, match="EarlyStopping watches 'accuracy', but"):
        fit(Scripted(), both())
    stopping = both(strict=False)
    assert fit(Scripted(), stopping, max_epochs=2).current_epoch == 2
    assert stopping.best_step is None


@pytest.mark.parametrize("resume_at", [16, 20])
def test_resuming_keeps_each_count(tmp_path: Path, resume_at: int) -> None:
    whole = both()
    expected = Two()
    fit(expected, whole, saves(tmp_path))
    state = torch.load(tmp_path / f"step={resume_at}.ckpt", weights_only=True)["callbacks"][STATE]
    (other,) = state["others"].values()
    assert (other["best_score"], other["wait_count"]) == (pytest.approx(0.35), resume_at // 4 - 4)
    module, resumed = Two(), both()
    trainer = fit(module, resumed, resume=tmp_path / f"step={resume_at}.ckpt")
    assert (trainer.current_epoch, verdict(resumed)) == (7, verdict(whole))
    assert same(module.state_dict(), expected.state_dict())
    longer = both(patience=5)  # of each: the first is out of it after epoch 6, the second never
    trainer = fit(Two(), longer, resume=tmp_path / f"step={resume_at}.ckpt")
    assert trainer.current_epoch == 8


def test_resuming_with_one_more_or_one_less(tmp_path: Path) -> None:
    fit(Scripted(), EarlyStopping("val_loss", patience=3), saves(tmp_path / "one"))
    stopping = both()
    trainer = fit(Two(), stopping, resume=tmp_path / "one" / "step=12.ckpt")
    assert trainer.current_epoch == 7  # the new one counts from here: 0.35, then three without
    assert verdict(stopping) == (1, 8, 1.0, 5)
    fit(Two(), both(), saves(tmp_path / "two"))
    stopping = EarlyStopping("val_loss", patience=3)
    module = Scripted()
    trainer = fit(module, stopping, resume=tmp_path / "two" / "step=16.ckpt")
    assert (trainer.current_epoch, verdict(stopping)) == (5, (1, 8, 1.0, 3))
    assert stopping.stopped_epoch == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": []}, "one name or several different names"),
        ({"monitor": ["a", "a"]}, "one name or several different names"),
        ({"monitor": None}, "monitor has to be a list of names, but got None"),
        (
            {"monitor": "a", "patience": -1},
            "patience has to be a whole .* 0 on, but got -1",
        ),
        ({"monitor": "a", "patience": "3"}, "patience has to be a whole number .* got '3'"),
        ({"monitor": "a", "patience": 2.5}, "patience has to be a whole number .* got 2.5"),
        ({"monitor": "a", "patience": math.nan}, "patience has to be a whole number .* got nan"),
        ({"monitor": "a", "min_delta": math.nan}, "min_delta has to be .* at least 0, but got nan"),
        ({"monitor": ["a", "b"], "mode": ["min"]}, r"mode has to be one for all of \['a', 'b'\]"),
        ({"monitor": ["a", "b"], "min_delta": [1.0, 2.0, 3.0]}, "min_delta has to be one for all"),
        ({"monitor": ["a", "b"], "stopping_threshold": 0.0}, "value, but monitor has 2"),
        ({"monitor": ["a", "b"], "divergence_threshold": 0.0}, "need a single monitored value"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        EarlyStopping(**arguments)
    with pytest.raises(ValueError, match="mode has to be 'min' or 'max', but got 'lowest'"):
        EarlyStopping(["a", "b"], mode=["min", "lowest"])  # type: ignore[list-item]


# Checks within an epoch, of 8 optimizer steps, each of 4 batches.

WITHIN = (6.0, 5.0, 4.0, 3.0, 1.0, 2.0, 2.0, 2.0)  # best at the fifth check, in epoch 1


def long_fit(*callbacks: Any, values: Any = WITHIN, resume: Path | None = None) -> Any:
    rows: Any = list(torch.randn(64, 2, generator=torch.Generator().manual_seed(1)))
    module = Scripted(values, every=2)
    trainer = trainer_of(*callbacks, accumulate_grad_batches=4, val_check_interval=8, max_epochs=4)
    trainer.fit(module, Stateful(rows, batch_size=2), DataLoader(rows, 32), ckpt_path=resume)
    return module, trainer


def test_steps_are_the_optimizers() -> None:
    stopping = EarlyStopping("val_loss", patience=3)
    module, trainer = long_fit(stopping)
    assert verdict(stopping) == (1, 10, 1.0, 3)
    assert (trainer.global_step, stopping.fit_steps) == (16, 32)
    assert same(module.state_dict(), module.seen[10])


@pytest.mark.parametrize("resume_at", [4, 10, 12])
def test_resuming_within_an_epoch(tmp_path: Path, resume_at: int) -> None:
    whole = EarlyStopping("val_loss", patience=3)
    expected, trainer = long_fit(whole, saves(tmp_path, save_on_train_epoch_end=False))
    last = state_of(expected)
    resumed = EarlyStopping("val_loss", patience=3)
    module, again = long_fit(resumed, resume=tmp_path / f"step={resume_at}.ckpt")
    assert (again.global_step, verdict(resumed)) == (trainer.global_step, verdict(whole))
    assert same(module.seen[16], expected.seen[16])
    assert same(module.state_dict(), last)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 12),
        ({"max_steps": 7}, 7),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4),
    ],
)
def test_the_length_of_the_fit_is_noted(options: dict[str, Any], steps: int) -> None:
    stopping = EarlyStopping("val_loss", patience=3)
    fit(Scripted(DIP, every=2 if steps == 4 else 4), stopping, **options)
    assert stopping.fit_steps == stopping.state_dict()["fit_steps"] == steps
