"""The warning of a monitored value whose name contradicts the mode."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule

from lightning_practices.callbacks import (
    BestCheckpoint,
    EarlyStopping,
    LearningCurves,
    LearningRateScheduler,
    ProgressiveUnfreezing,
)
from lightning_practices.callbacks._trainer.modes import warn_of_modes
from lightning_practices.mixins import TrainingPractices
from tests.callbacks.scripted import Scripted, loaders, trainer_of


def warned(name: str, mode: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_modes([(name, mode)], [])
    return bool(caught)


RISING = """acc accuracy val_acc val/acc val_accuracy valAccuracy acc1 top1_acc val_acc@5 f1 val_f1
    BinaryAccuracy MulticlassF1Score BinaryAUROC mIoU val_miou auroc AUC r2 R2Score dice recall
    val_acc/dataloader_idx_0 test.precision psnr acc_epoch"""
FALLING = """loss val_loss val/loss valLoss train_loss_epoch error val_error_rate top1_error rmse
    val_mae MeanSquaredError perplexity dice_loss f1_loss accuracy_error val_loss2 wer nll
    val_loss/dataloader_idx_1 focal_loss"""
# Of no direction that the name tells, or of the opposite one by another word.
UNCLEAR = """score metric reward neg_loss neg_mean_squared_error minus_error inverse_accuracy
    one_minus_acc acc_gap loss_gap acc_std accuracy_drop loss_reduction error_reduction
    steps_to_accuracy time_to_acc adversarial_loss discriminator_loss critic_loss loss_accuracy
    accelerator access faction gloss lossless errors_found terror mapping f10 accent
    calibration ece fid lr grad_norm epoch"""


@pytest.mark.parametrize("name", RISING.split())
def test_a_value_that_rises(name: str) -> None:
    assert warned(name, "min")
    assert not warned(name, "max")


@pytest.mark.parametrize("name", FALLING.split())
def test_a_value_that_falls(name: str) -> None:
    assert warned(name, "max")
    assert not warned(name, "min")


@pytest.mark.parametrize("name", UNCLEAR.split())
def test_a_name_that_says_nothing_of_its_mode(name: str) -> None:
    assert not warned(name, "max")
    assert not warned(name, "min")


class Net(Scripted):
    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val_acc": 1.0, "val_loss": 1.0})


MESSAGE = r"monitor='val_acc' has mode='min', so lower .* higher values are: give mode='max'"
PLATEAU: dict[str, Any] = {"plateau": {"monitor": "val_acc", "patience": 1}}
MADE: list[Callable[[], list[Callback]]] = [
    lambda: [EarlyStopping("val_acc", restore_best_weights=False)],
    lambda: [EarlyStopping(["val_loss", "val_acc"])],
    lambda: [BestCheckpoint("val_acc")],
    lambda: [LearningCurves("curves.svg", monitor="val_acc")],
    lambda: [LearningRateScheduler("plateau", "val_acc")],
    lambda: [
        ProgressiveUnfreezing(
            [{"blocks": ["net.1"], "until": PLATEAU}, {"blocks": ["net.0"]}], by=["net.0", "net.1"]
        )
    ],
    lambda: [
        EarlyStopping("val_acc"),
        BestCheckpoint("val_acc"),
        LearningRateScheduler("plateau", "val_acc"),
    ],
]


def fit(module: LightningModule, callbacks: list[Callback]) -> list[str]:
    """Return the warnings of a mode."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(*callbacks, max_epochs=1, limit_train_batches=1).fit(module, *loaders())
    return [str(one.message) for one in caught if "has mode=" in str(one.message)]


@pytest.mark.parametrize("make", MADE)
def test_every_callback_warns_and_all_together_once(
    make: Callable[[], list[Callback]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = fit(Net(), make())
    assert re.match(MESSAGE, text)


def test_the_mixins_warn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Practised(TrainingPractices, Net):
        pass

    assert len(fit(Practised(monitor="val_acc", schedule="plateau", early_stopping=20), [])) == 1
    assert not fit(Practised(monitor="val_acc", mode="max"), [])


def test_a_schedule_that_monitors_nothing_is_quiet() -> None:
    assert not fit(Net(), [LearningRateScheduler("cosine", "val_acc")])
