"""All practices from a command line, by LightningCLI."""

import inspect
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.mixins import TrainingPractices

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:the fit has 2 checks, and the plateau schedule"),
    pytest.mark.filterwarnings("ignore:.*will be overridden by .LightningCLI"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*decays .* of the parameters that Penalty penalises"),
]


class Net(TrainingPractices, LightningModule):
    def __init__(self, width: int = 4, **practices: Any) -> None:
        super().__init__(**practices)
        self.net = nn.Linear(3, width)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()  # type: ignore[no-any-return]

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch).square().mean())

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(4, 3))  # type: ignore[arg-type]

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(4, 3))  # type: ignore[arg-type]


QUIET = """
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
"""

OBJECTS = """
model:
  width: 2
  monitor: val_loss
  optimizer:
    class_path: lightning_practices.optim.Optimizer
    init_args: {lr: 0.25}
    dict_kwargs: {betas: [0.5, 0.75]}
  schedule:
    class_path: lightning_practices.schedules.LearningRateSchedule
    init_args: {name: one_cycle}
  early_stopping:
    class_path: lightning_practices.callbacks.EarlyStopping
    init_args: {monitor: val_loss, patience: 7, min_delta: 0.5}
  gradient_clipping:
    class_path: lightning_practices.callbacks.GradientClipping
    init_args: {percentile: 50}
  weight_averaging:
    class_path: lightning_practices.callbacks.WeightAveraging
    init_args: {kind: swa, start: 0.5, interval: step}
  penalty:
    class_path: lightning_practices.callbacks.Penalty
    init_args: {l1: 0.001, exclude: [bias]}
  checkpoint:
    class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {monitor: val_loss}
  skip_non_finite:
    class_path: lightning_practices.callbacks.SkipNonFinite
  learning_curves:
    class_path: lightning_practices.callbacks.LearningCurves
    init_args: {path: curves.svg}
"""

SHORT = """
model:
  optimizer: {class_path: lightning_practices.optim.Optimizer, init_args: {name: torch.optim.NAdam}}
  schedule: plateau
  early_stopping: 5
  gradient_clipping: 0.5
  weight_averaging: ema
  checkpoint: false
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Lightning's command line calls what jsonargparse has deprecated.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def cli(*arguments: str) -> LightningCLI:
    """Run the command ``fit`` with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["net.py", "fit", *arguments])
        return LightningCLI(Net, seed_everything_default=False, save_config_callback=None)


def printed(*arguments: str) -> str:
    """Return the config that the command prints."""
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit) as end:
        cli(*arguments, "--print_config")
    assert end.value.code == 0
    return text.getvalue()


def made(*arguments: str) -> dict[str, Any]:
    """Return what the command has made of the arguments, after its fit."""
    run: Any = cli(*arguments)
    (optimizer,) = run.trainer.optimizers
    scheduler = run.model.learning_rate_scheduler
    return {
        "callbacks": sorted(type(c).__name__ for c in run.trainer.callbacks),
        "optimizer": [type(optimizer).__name__, *optimizer.param_groups[0].get("betas", ())],
        "rate": optimizer.param_groups[0]["initial_lr"],
        "schedule": scheduler and scheduler.schedule.name,
        "patience": run.model.early_stopping.patience,
    }


def test_all_arguments_are_in_the_config_of_a_command_line() -> None:
    shown = yaml.safe_load(printed())["model"]
    given = inspect.signature(TrainingPractices.__init__).parameters.values()
    expected = {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}
    assert shown == {"width": 4, **expected}


def test_objects_from_a_file() -> None:
    Path("objects.yaml").write_text(QUIET + OBJECTS)
    config = printed("--config", "objects.yaml")
    Path("printed.yaml").write_text(config)
    assert printed("--config", "printed.yaml") == config
    model = yaml.safe_load(config)["model"]
    assert model["early_stopping"]["init_args"]["restore_best_weights"] is True
    assert model["optimizer"]["dict_kwargs"] == {"betas": [0.5, 0.75]}
    assert made("--config", "printed.yaml") == {
        "callbacks": [
            "EarlyStopping", "ExactResume", "FoundLearningRate", "FusedLayers", "GradientClipping",
            "LearningCurves", "LearningRateScheduler", "ModelCheckpoint", "Penalty",
            "SkipNonFinite", "WeightAveraging",
        ],
        "optimizer": ["AdamW", 0.5, 0.75], "rate": 0.25, "schedule": "one_cycle", "patience": 7,
    }  # fmt: skip
    assert Path("curves.svg").exists()


def test_short_values_from_a_file() -> None:
    Path("short.yaml").write_text(QUIET + SHORT)
    Path("printed.yaml").write_text(printed("-c", "short.yaml"))
    assert made("--config", "printed.yaml", "--model.early_stopping", "6") == {
        "callbacks": [
            "EarlyStopping", "ExactResume", "FoundLearningRate", "FusedLayers", "GradientClipping",
            "LearningRateScheduler", "ModelCheckpoint", "WeightAveraging",
        ],
        "optimizer": ["NAdam", 0.9, 0.999], "rate": 2e-3, "schedule": "plateau", "patience": 6,
    }  # fmt: skip


def test_optimizer_and_scheduler_of_lightning_cli() -> None:
    Path("quiet.yaml").write_text(QUIET)
    arguments = ["--config", "quiet.yaml", "--optimizer", "SGD", "--optimizer.lr", "0.5"]
    arguments += ["--lr_scheduler", "ExponentialLR", "--lr_scheduler.gamma", "0.9"]
    with pytest.raises(MisconfigurationException) as refused:
        cli(*arguments)
    message = str(refused.value)
    assert "got SGD, ExponentialLR from configure_optimizers" in message
    for advice in ("--lr_scheduler", "--model.schedule=one_cycle", "--model.schedule=null"):
        assert advice in message
    found = made(*arguments, "--model.schedule=null")
    assert (found["optimizer"], found["rate"], found["schedule"]) == (["SGD"], 0.5, None)
    found = made("--config", "quiet.yaml", "--model.optimizer=sgd", "--model.schedule=one_cycle")
    assert (found["optimizer"], found["schedule"]) == (["SGD"], "one_cycle")
