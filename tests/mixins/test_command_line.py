"""All practices from a command line, by LightningCLI."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import yaml

from lightning_practices.mixins import TrainingPractices

SCRIPT = """
import json
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from lightning_practices.mixins import TrainingPractices

class Net(TrainingPractices, LightningModule):
    def __init__(self, width: int = 4, **practices):
        super().__init__(**practices)
        self.net = torch.nn.Linear(3, width)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(batch).square().mean())

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 3))

    val_dataloader = train_dataloader

cli = LightningCLI(Net, seed_everything_default=None, save_config_callback=None)
(optimizer,) = cli.trainer.optimizers
scheduler = cli.model.learning_rate_scheduler
print(json.dumps({
    "callbacks": sorted(type(c).__name__ for c in cli.trainer.callbacks),
    "optimizer": [type(optimizer).__name__, *optimizer.param_groups[0].get("betas", ())],
    "rate": optimizer.param_groups[0]["initial_lr"],
    "schedule": scheduler and scheduler.schedule.name,
    "patience": cli.model.early_stopping.patience,
}))
"""

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
    init_args: {kind: swa, start: 0.5}
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


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "net.py").write_text(SCRIPT)  # a file: jsonargparse reads what is passed on
    command = [sys.executable, "-W", "ignore", "net.py", "fit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def run(folder: Path, *arguments: str) -> str:
    done = called(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_arguments_are_in_the_config_of_a_command_line(tmp_path: Path) -> None:
    shown = yaml.safe_load(run(tmp_path, "--print_config"))["model"]
    given = inspect.signature(TrainingPractices.__init__).parameters.values()
    expected = {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}
    assert shown == {"width": 4, **expected}


def test_short_values_and_objects_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "objects.yaml").write_text(QUIET + OBJECTS)
    printed = run(tmp_path, "--config", "objects.yaml", "--print_config")
    (tmp_path / "printed.yaml").write_text(printed)
    assert run(tmp_path, "--config", "printed.yaml", "--print_config") == printed
    model = yaml.safe_load(printed)["model"]
    assert model["early_stopping"]["init_args"]["restore_best_weights"] is True
    assert model["optimizer"]["dict_kwargs"] == {"betas": [0.5, 0.75]}
    made = json.loads(run(tmp_path, "--config", "printed.yaml").splitlines()[-1])
    assert made == {
        "callbacks": [
            "EarlyStopping", "ExactResume", "FoundLearningRate", "GradientClipping",
            "LearningCurves", "LearningRateScheduler", "ModelCheckpoint", "Penalty",
            "SkipNonFinite", "WeightAveraging",
        ],
        "optimizer": ["AdamW", 0.5, 0.75], "rate": 0.25, "schedule": "one_cycle", "patience": 7,
    }  # fmt: skip
    assert (tmp_path / "curves.svg").exists()
    (tmp_path / "short.yaml").write_text(QUIET + SHORT)
    (tmp_path / "printed.yaml").write_text(run(tmp_path, "-c", "short.yaml", "--print_config"))
    arguments = ["--config", "printed.yaml", "--model.early_stopping", "6"]
    made = json.loads(run(tmp_path, *arguments).splitlines()[-1])
    assert made == {
        "callbacks": [
            "EarlyStopping", "ExactResume", "FoundLearningRate", "GradientClipping",
            "LearningRateScheduler", "ModelCheckpoint", "WeightAveraging",
        ],
        "optimizer": ["NAdam", 0.9, 0.999], "rate": 2e-3, "schedule": "plateau", "patience": 6,
    }  # fmt: skip


def test_optimizer_and_scheduler_of_lightning_cli(tmp_path: Path) -> None:
    (tmp_path / "quiet.yaml").write_text(QUIET)
    arguments = ["--config", "quiet.yaml", "--optimizer", "SGD", "--optimizer.lr", "0.5"]
    arguments += ["--lr_scheduler", "ExponentialLR", "--lr_scheduler.gamma", "0.9"]
    refused = called(tmp_path, *arguments)
    assert refused.returncode == 1
    message = refused.stderr.splitlines()[-1]
    assert "got SGD, ExponentialLR from configure_optimizers" in message
    for advice in ("--lr_scheduler", "--model.schedule=one_cycle", "--model.schedule=null"):
        assert advice in message
    made = json.loads(run(tmp_path, *arguments, "--model.schedule=null").splitlines()[-1])
    assert (made["optimizer"], made["rate"], made["schedule"]) == (["SGD"], 0.5, None)
    arguments = ["--config", "quiet.yaml", "--model.optimizer=sgd", "--model.schedule=one_cycle"]
    made = json.loads(run(tmp_path, *arguments).splitlines()[-1])
    assert (made["optimizer"], made["schedule"]) == (["SGD"], "one_cycle")
