"""Data of the recipes' tests, and runs of the command in this process and in several."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from sklearn.datasets import load_digits
from typing_extensions import override

from lightning_practices.cli import main
from tests import processes

FILTERS = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*tensorboardX. has been removed"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Found .* module"),  # in eval mode, which are frozen
    pytest.mark.filterwarnings("ignore:.* the phases of ProgressiveUnfreezing before the last"),
]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
         "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]  # fmt: skip


class KillAt(Callback):
    """Kills the process before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            processes.kill()


def write_digits(root: Path, classes: int = 4, images: int = 300) -> Path:
    """Write the first digits as images of 8 x 8 pixels, each fifth one for validation."""
    pixels, labels = load_digits(return_X_y=True)
    for place, (one, label) in enumerate(zip(pixels[:images], labels, strict=False)):
        if label < classes:
            folder = root / ("train" if place % 5 else "val") / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            image = (one.reshape(8, 8) * 15.9375).astype("uint8")
            Image.fromarray(image).save(folder / f"{place:04}.png")
    return root


def run_recipe(name: str, *overrides: str) -> None:
    """Run a recipe by the command; files are below the working directory."""
    assert main(["recipe", "run", name, *QUIET, *overrides]) == 0


def run_recipe_in(folder: Path, name: str, *overrides: str) -> None:
    """Run a recipe in a folder, for the processes of several ranks."""
    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
    os.chdir(folder)
    run_recipe(name, *overrides)


def logged(name: str, version: int = 0) -> list[float]:
    """Return all values of a metric that a run has logged."""
    with Path(f"lightning_logs/version_{version}/metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def checkpoint(version: int = 0, name: str = "epoch=*") -> Path:
    """Return a checkpoint of a run."""
    (found,) = Path(f"lightning_logs/version_{version}/checkpoints").glob(f"{name}.ckpt")
    return found.resolve()
