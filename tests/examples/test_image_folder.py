"""A ResNet on an ImageFolder from one YAML file, with the practices of training and of data."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from examples import image_folder as example
from lightning_practices.data import Standardize

CONFIG = Path(example.__file__ or "").with_suffix(".yaml")


# Lightning calls what jsonargparse 4.49 deprecates.
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_one_file_trains_with_all_practices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(CONFIG.read_text().splitlines()) < 40
    short = {
        "trainer.max_epochs": 2, "trainer.limit_train_batches": 3, "trainer.limit_val_batches": 2,
        "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.enable_progress_bar": False,
        "data.num_workers": 0, "model.schedule": "cosine",
    }  # fmt: skip
    options = [f"--{name}={value}" for name, value in short.items()]
    monkeypatch.setattr(sys, "argv", ["image_folder.py"])
    cli = example.main(["fit", "--config", str(CONFIG), *options])
    assert cli.trainer.global_step == 6
    # The statistics are those of the training images, without augmentation.
    assert cli.model.preprocessing is not None
    kept = cli.model.preprocessing.layers[0].state_dict()
    scale = v2.Compose([v2.ToImage(), v2.Resize(32), v2.ToDtype(torch.float32, scale=True)])
    folder = ImageFolder(tmp_path / "digits_images" / "train", scale)
    images = torch.stack([image for image, _ in folder])
    for name, value in Standardize().fit(images).state_dict().items():
        torch.testing.assert_close(kept[name], value)
    # The best checkpoint brings them along.
    assert cli.model.checkpoint is not None
    loaded = example.Classifier.load_from_checkpoint(cli.model.checkpoint.best_model_path)
    assert loaded.preprocessing is not None
    assert torch.equal(loaded.preprocessing.layers[0].state_dict()["mean"], kept["mean"])
    options = [*options, f"--ckpt_path={cli.model.checkpoint.best_model_path}"]
    tested = example.main(["test", "--config", str(CONFIG), *options])
    assert "test_accuracy" in tested.trainer.callback_metrics
    predicted: Any = tested.trainer.predict(tested.model, tested.datamodule, ckpt_path=None)
    val = torch.stack(
        [image for image, _ in ImageFolder(tmp_path / "digits_images" / "val", scale)]
    )
    expected = loaded.eval()(loaded.preprocessing(val)).softmax(1)
    torch.testing.assert_close(torch.cat(predicted), expected)
    assert cli.trainer.log_dir is not None
    assert Path(cli.trainer.log_dir, "curves.svg").exists()
