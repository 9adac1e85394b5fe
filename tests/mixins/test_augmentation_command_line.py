"""Augmentation from a command line, by LightningCLI: by name, and as objects."""

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from torchvision.transforms import v2

from tests.mixins.augmented import Data, Net

QUIET = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""

OBJECTS = """
data:
  augment_on: device
  preprocess: standardize
  augment:
    - flip
    - class_path: lightning_practices.data.augmentation
      init_args: {name: rotation}
      dict_kwargs: {degrees: 10}
    - class_path: lightning_practices.data.Augmentation
      init_args: {transforms: [crop, cutout]}
    - class_path: torchvision.transforms.v2.MixUp
      init_args: {num_classes: 4}
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Lightning's command line calls what jsonargparse has deprecated.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def cli(*arguments: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["net.py", "fit", "--config", "quiet.yaml", *arguments])
        Path("quiet.yaml").write_text(QUIET)
        return LightningCLI(Net, Data, seed_everything_default=False, save_config_callback=None)


def kinds(run: Any) -> list[str]:
    made = run.datamodule.augmentation
    return [type(one).__name__ for one in (*made.per_sample, *made.mixing)]


def test_names() -> None:
    assert kinds(cli("--data.augment", "flip")) == ["RandomHorizontalFlip"]
    run = cli("--data.augment", "[rotation, small_images]", "--data.augment_on", "device")
    assert kinds(run) == ["RandomRotation", "RandomPaddedCrop", "RandomHorizontalFlip"]
    assert cli().datamodule.augmentation is None
    with pytest.raises(SystemExit):
        cli("--data.augment", "flips")


def test_objects() -> None:
    Path("objects.yaml").write_text(OBJECTS)
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit) as end:
        cli("--config", "objects.yaml", "--print_config")
    assert end.value.code == 0
    config = yaml.safe_load(text.getvalue())["data"]
    assert config["augment"][1]["dict_kwargs"] == {"degrees": 10}
    assert config["preprocess"] == "standardize"
    Path("printed.yaml").write_text(text.getvalue())
    run = cli("--config", "printed.yaml")
    assert kinds(run) == [
        "RandomHorizontalFlip", "RandomRotation", "RandomPaddedCrop", "RandomErasing", "MixUp"
    ]  # fmt: skip
    rotation = run.datamodule.augmentation.per_sample[1]
    assert isinstance(rotation, v2.RandomRotation)
    assert rotation.degrees == [-10, 10]
    assert run.model.got["train"][0][1].shape == (4, 4)
