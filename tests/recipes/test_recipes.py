"""Each recipe, run by the command in a short form: it learns, and tests its best weights."""

import sys
from pathlib import Path

import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices.recipes import (
    DigitsClassifier,
    DigitsData,
    ImageClassifier,
    TransferImageClassifier,
)
from tests.recipes.programs import FILTERS, checkpoint, logged, run_recipe, write_digits

pytestmark = FILTERS
SMALL_IMAGES = ["--data.root=images", "--data.image_size=32", "--data.num_workers=0",
                "--data.batch_size=32"]  # fmt: skip
CROP = (
    "--data.augment=[{class_path: torchvision.transforms.v2.RandomResizedCrop,"
    " init_args: {size: 32, scale: [0.8, 1.0], antialias: true}}]"
)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["lightning-practices"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the recipe of the ResNet-18 from scratch, and return its folder."""
    folder = tmp_path_factory.mktemp("resnet18")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.setattr(sys, "path", [*sys.path])
        write_digits(folder / "images")
        short = ["--trainer.max_epochs=5", "--model.schedule=cosine", "--model.early_stopping=null"]
        run_recipe("image_folder_resnet18", *SMALL_IMAGES, *short, "--data.augment=null",
                   "--model.weight_averaging=null")  # fmt: skip
    return folder


def test_digits() -> None:
    run_recipe("digits", "--trainer.max_epochs=2", "--model.early_stopping=null")
    assert logged("test_accuracy")[0] > 0.8  # of ten classes
    assert logged("val_loss")[1] < logged("val_loss")[0]
    assert Path("lightning_logs/version_0/curves.svg").exists()
    # The test was of the best weights, and these are in a file that load_from_checkpoint reads.
    loaded = DigitsClassifier.load_from_checkpoint(checkpoint()).eval()
    assert loaded.preprocessing is not None
    right = [
        loaded(loaded.preprocessing(x)).argmax(1) == y for x, y in DigitsData().test_dataloader()
    ]
    assert torch.cat(right).float().mean().item() == pytest.approx(logged("test_accuracy")[0])


def test_tabular_of_a_file() -> None:
    pixels, labels = load_digits(n_class=3, return_X_y=True)
    rows = ["kind,number,left,right"]
    for number, (one, label) in enumerate(zip(pixels, labels, strict=True)):
        halves = one.reshape(8, 8)
        left, right = halves[:, :4].std(), halves[:, 3:5].mean()
        rows.append(f"class {label},{number},{left},{right}")
    Path("table.csv").write_text("\n".join(rows))
    given = ["--data.file=table.csv", "--data.target=kind", "--data.columns=[left,right]"]
    short = ["--trainer.max_epochs=8", "--model.optimizer.lr=0.01", "--model.early_stopping=null"]
    run_recipe("tabular", *given, *short, "--model.schedule.warmup_steps=5")
    assert logged("test_accuracy")[0] > 0.6  # of three classes
    loaded = torch.load(checkpoint(), weights_only=True)
    assert loaded["hyper_parameters"]["num_features"] == 2
    assert loaded["hyper_parameters"]["num_classes"] == 3


@pytest.mark.parametrize("activation", ["selu", "relu"])
def test_tabular_of_breast_cancer(activation: str) -> None:
    short = ["--trainer.max_epochs=3", "--model.early_stopping=null", "--model.schedule=cosine"]
    run_recipe("tabular", *short, f"--model.activation={activation}")
    assert logged("test_accuracy")[0] > 0.85  # of 0.63 for the frequent class


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent(cell: str) -> None:
    given = []
    if cell == "lstm":
        digits = load_digits(n_class=3)
        numpy.savez("own.npz", x=digits.images, y=digits.target + 5)
        given = ["--data.file=own.npz"]
    short = ["--trainer.max_epochs=2", "--model.early_stopping=null", f"--model.cell={cell}"]
    run_recipe("recurrent", *short, *given)
    assert logged("test_accuracy")[0] > 0.6
    clipped = [min(norm, 1.0) for norm in logged("grad_norm")]
    assert logged("grad_norm_clipped") == pytest.approx(clipped, rel=1e-4)


def test_image_folder_resnet18(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert logged("test_accuracy")[0] > 0.5  # of four classes
    module = ImageClassifier.load_from_checkpoint(checkpoint())
    assert module.num_classes == 4
    assert module.preprocessing is not None
    assert module.preprocessing.layers[0].state_dict()["mean"].numel() == 3  # of each channel


def test_transfer_from_a_checkpoint_of_a_recipe(trained: Path) -> None:
    write_digits(Path("images"), classes=3)
    start = next((trained / "lightning_logs").rglob("epoch=*.ckpt"))
    short = ["--trainer.max_epochs=3", "--data.resize=36", CROP, "--model.early_stopping=null"]
    run_recipe("transfer_image_folder", *SMALL_IMAGES, *short, f"--model.weights={start}")
    assert logged("test_accuracy")[0] > 0.6  # of three classes
    assert logged("phase") == sorted(logged("phase"))
    assert max(logged("phase")) == 3
    before = torch.load(start, weights_only=True)["state_dict"]
    module = TransferImageClassifier.load_from_checkpoint(checkpoint(name="last"))
    after = module.state_dict()
    norms = [n for n, one in module.network.named_modules() if isinstance(one, _BatchNorm)]
    assert len(norms) == 20
    for name in norms:
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(after[f"network.{name}.{part}"], before[f"network.{name}.{part}"])
    assert torch.equal(after["network.conv1.weight"], before["network.conv1.weight"])  # frozen yet
    assert not torch.equal(
        after["network.layer4.1.conv1.weight"], before["network.layer4.1.conv1.weight"]
    )


def test_image_folder_resnet50() -> None:
    write_digits(Path("images"), images=200)
    short = ["--trainer.max_epochs=3", "--data.resize=36", CROP, "--model.schedule=cosine",
             "--trainer.accumulate_grad_batches=1", "--model.optimizer.lr=0.01"]  # fmt: skip
    run_recipe("image_folder_resnet50", *SMALL_IMAGES, *short, "--data.batch_size=16")
    losses = logged("train_loss")
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    factors = logged("drop_rate_factor")
    assert factors[0] == 0
    assert factors == sorted(factors)
    assert factors[-1] > 0.9


def test_text_transformer() -> None:
    Path("own.txt").write_bytes(Path(__file__).read_bytes())
    small = ["--data.file=own.txt", "--model.length=32", "--data.length=32", "--data.batch_size=16"]
    short = ["--model.width=32", "--model.depth=1", "--trainer.max_epochs=2",
             "--model.schedule=cosine", "--model.optimizer.lr=0.01",
             "--model.early_stopping=null"]  # fmt: skip
    run_recipe("text_transformer", *small, *short)
    assert logged("test_loss")[0] < 4.5 < 5.55  # the entropy of a uniform guess
    assert logged("val_loss")[1] < logged("val_loss")[0]
