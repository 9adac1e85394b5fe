"""Types of the mixins' arguments: those that are taken, and errors that give the right call."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningModule

from lightning_practices.mixins import (
    FineTuningMixin,
    MonteCarloDropoutMixin,
    TrainingPractices,
)


class Net(TrainingPractices, LightningModule):
    pass


class Tuned(FineTuningMixin, LightningModule):
    pass


class Sampled(MonteCarloDropoutMixin, LightningModule):
    pass


SGD = torch.optim.SGD
EARLY = r"early_stopping=10 or early_stopping=EarlyStopping\('val_loss', patience=10\), or ear"
CASES: list[tuple[str, Any, str]] = [
    ("optimizer", SGD, r"the class torch.optim.SGD: give optimizer=Optimizer\(torch.optim.SGD, lr"),
    ("optimizer", SGD([torch.ones(1)], 0.1), r"an object of torch.optim.SGD: give optimizer=Optim"),
    (
        "optimizer",
        max,
        r"give optimizer=Optimizer\(max, lr=\.\.\.\), or optimizer=None for the con",
    ),
    ("optimizer", partial(SGD, lr=0.1), r"give optimizer=Optimizer\(function, lr=\.\.\.\)"),
    ("optimizer", 3, r"3, of class int: give optimizer=Optimizer\('adamw', lr=1e-3\)"),
    ("penalty", 0.25, r"penalty=Penalty\(l2=0.25\), or penalty=None to turn it off"),
    ("penalty", True, r"penalty=Penalty\(l2=0.0001\)"),
    ("checkpoint", "there/", r"checkpoint=BestCheckpoint\('val_loss', dirpath='there/'\)"),
    ("checkpoint", Path("there"), r"checkpoint=BestCheckpoint\('val_loss', dirpath='there'\)"),
    ("early_stopping", "val_acc", r"early_stopping=EarlyStopping\('val_acc', patience=10\)"),
    ("early_stopping", False, EARLY + "ly_stopping=None to turn it off"),
    ("early_stopping", True, EARLY),
    ("early_stopping", lightning.pytorch.callbacks.EarlyStopping("val_loss"), EARLY),
    ("schedule", torch.optim.lr_scheduler.StepLR, "lr_scheduler.StepLR: give schedule='cosine' or"),
    ("schedule", False, "schedule=None to turn it off"),
    ("gradient_clipping", False, "gradient_clipping=None to turn it off"),
    ("weight_averaging", False, "weight_averaging=None to turn it off"),
    ("exact_resume", "yes", "give exact_resume=True, or exact_resume=None to turn it off"),
    ("skip_non_finite", False, "give skip_non_finite=3, or skip_non_finite=None to turn it off"),
    ("learning_curves", False, "give learning_curves='curves.svg', or learning_curves=None"),
    ("fine_tuning", False, "fine_tuning='auto' or .* fine_tuning=None to turn it off"),
    ("monte_carlo_dropout", False, "monte_carlo_dropout='multiclass' or .*=None to turn it off"),
]


@pytest.mark.parametrize(("name", "value", "message"), CASES)
def test_an_error_gives_the_right_call(name: str, value: Any, message: str) -> None:
    kind: Any = {"fine_tuning": Tuned, "monte_carlo_dropout": Sampled}.get(name, Net)
    with pytest.raises(TypeError, match=message) as raised:
        kind(**{name: value})
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_a_checkpoint_callback_of_the_modules_package(package: Any) -> None:
    other = pytorch_lightning if package is lightning.pytorch else lightning.pytorch
    kind: Any = type("Net", (TrainingPractices, package.LightningModule), {})
    given = package.callbacks.ModelCheckpoint(monitor="val_loss", save_last=True)
    checkpoint = kind(checkpoint=given).checkpoint
    assert type(checkpoint) is type(given)
    assert (checkpoint.monitor, checkpoint.save_last) == ("val_loss", True)
    with pytest.raises(TypeError, match="from one package"):
        kind(checkpoint=other.callbacks.ModelCheckpoint(monitor="val_loss"))


def test_a_checkpoint_callback_of_the_twin_is_left_out_of_checkpoints(tmp_path: Path) -> None:
    class Saving(TrainingPractices, pytorch_lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, width: int = 1, **practices: Any) -> None:
            super().__init__(**practices)
            self.save_hyperparameters()
            self.net = torch.nn.Linear(width, 1)

    given = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss")
    module = Saving(checkpoint=given, optimizer="sgd")
    trainer = pytorch_lightning.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path := tmp_path / "net.ckpt", weights_only=True)
    loaded: Any = Saving.load_from_checkpoint(path, checkpoint=given, weights_only=True)
    assert loaded.checkpoint.monitor == "val_loss"
    assert loaded.hparams["optimizer"] == "sgd"
