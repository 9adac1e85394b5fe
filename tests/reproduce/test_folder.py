"""Tables on a folder of images: real pictures in a temporary folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.models import get_model

from lightning_practices import recipes
from lightning_practices.nn import DropBlock2d, Dropout2d, StochasticDepth
from lightning_practices.recipes import DataError, add_drop_block
from lightning_practices.reproduce import Results, all_tables
from lightning_practices.reproduce._folder import Folder
from lightning_practices.reproduce._networks import torchvision_resnet
from lightning_practices.reproduce.tables import regularisation

ON_FOLDER = {name: one.on_folder for name, one in all_tables().items() if one.on_folder is not None}
CLASSES = "blue", "red"
RECIPE = Path(recipes.__file__).with_name("image_folder_resnet50.yaml")
pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def paint(root: Path, each: int, edge: int = 12) -> None:
    """Write noisy pictures of two classes, whose colours differ."""
    drawn = np.random.default_rng(each)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = drawn.integers(0, 100, (edge, edge, 3), dtype=np.uint8)
            pixels[:, :, 2 if name == "blue" else 0] += 120
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("splits")
    paint(root / "train", 12)
    paint(root / "val", 10)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    paint(root, 20)
    return root


@pytest.mark.parametrize("name", ON_FOLDER)
def test_each_cell_runs_on_a_folder_with_two_seeds(name: str, splits: Path) -> None:
    table = ON_FOLDER[name]
    cells = Results(table, tiny=True, data=str(splits)).different_settings()
    made = [table.experiment(seed=seed, **settings) for seed in (0, 1) for settings in cells]
    assert all(0 <= one["accuracy"] <= 100 for one in made)
    losses = [one["loss"] for one in made if one["loss"] > 0]  # some fits are perfect
    assert len(losses) > len(cells)
    assert len(set(losses)) == len(losses)  # each setting and each seed is another fit


def test_the_networks_learn_the_pictures_of_the_folder(splits: Path, whole: Path) -> None:
    for root in (splits, whole):
        made = ON_FOLDER["preprocessing"].experiment(
            seed=0, data=str(root), preprocess="standardize", network="one layer, ReLU",
            rates=(1e-2,), epochs=10, batch_size=8,
        )  # fmt: skip
        assert made["accuracy"] == 100


def test_grey_levels_are_from_0_to_255(splits: Path) -> None:
    images = Folder(str(splits), 0, 8, image_size=12, scale=255, num_workers=0)
    values, _ = next(iter(images.test_dataloader()))
    assert values.max() > 200
    assert torch.equal(values, values.round())


def names_of(loader: DataLoader[Any]) -> set[str]:
    """Return the files behind a loader."""
    subset: Any = loader.dataset
    return {subset.dataset.imgs[i][0] for i in subset.indices}


def test_a_folder_of_classes_is_split_by_the_seed(whole: Path) -> None:
    parts = []
    for seed in (0, 0, 1):
        images = Folder(str(whole), seed, 8, image_size=12, num_workers=0)
        loaders = images.train_dataloader(), images.val_dataloader(), images.test_dataloader()
        parts.append([names_of(loader) for loader in loaders])
    assert [len(part) for part in parts[0]] == [24, 8, 8]
    assert len(set.union(*parts[0])) == 40  # no file is in two parts
    assert {len([n for n in part if "/red/" in n]) * 2 - len(part) for part in parts[0]} == {0}
    assert parts[0] == parts[1]
    assert parts[0][2] != parts[2][2]


def test_the_order_of_training_batches_is_that_of_the_seed(splits: Path) -> None:
    def order(seed: int) -> list[int]:
        images = Folder(str(splits), seed, 8, image_size=12, num_workers=0)
        torch.manual_seed(len(seen))  # as another network would leave it
        return torch.cat([labels for _, labels in images.train_dataloader()]).tolist()

    seen: list[list[int]] = []
    for seed in (0, 0, 1):
        seen.append(order(seed))
    assert seen[0] == seen[1] != seen[2]


def test_noise_is_where_the_recipe_has_drop_block() -> None:
    for kind in (DropBlock2d, Dropout2d):
        name = "DropBlock" if kind is DropBlock2d else "spatial dropout"
        options = regularisation.NOISE_ON_FOLDER[name](0.1)
        layers = {
            name: layer.p
            for name, layer in torchvision_resnet("resnet50", 5, **options).named_modules()
            if isinstance(layer, kind)
        }
        # Behind three norms and the shortcut of each block.
        assert sum(name.startswith("layer4.") for name in layers) == 3 * 4
        assert sum(name.startswith("layer3.") for name in layers) == 6 * 4
        assert len(layers) == 36
        for name, p in layers.items():
            assert p == pytest.approx(0.1 if name.startswith("layer4.") else 0.025)


def test_drop_path_ends_each_residual_branch() -> None:
    options = regularisation.NOISE_ON_FOLDER["DropPath"](0.1)
    layers = {
        name
        for name, layer in torchvision_resnet("resnet50", 5, **options).named_modules()
        if isinstance(layer, StochasticDepth)
    }
    assert len(layers) == 16
    assert all(".bn3." in name for name in layers)


def test_the_fit_is_that_of_the_recipe(splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    fits: list[tuple[Any, dict[str, Any]]] = []

    def classifier(network: Any, classes: int, loss: Any, **practices: Any) -> Any:
        return SimpleNamespace(network=network, loss=loss, **practices)

    def train(make: Any, data: Any, seed: int, **trainer: Any) -> Any:
        fits.append((make(), {**trainer, "data": data}))
        return None

    monkeypatch.setattr(regularisation, "Classifier", classifier)
    monkeypatch.setattr(regularisation, "train", train)
    monkeypatch.setattr(regularisation, "test", lambda model, data: {"accuracy": 0.0})
    table = ON_FOLDER["regularisation"]
    few = {"batch_size": 8, "workers": 0}
    for row in ("none", "DropBlock and label smoothing"):
        table.experiment(seed=0, data=str(splits), **table.settings(row, "accuracy"), **few)
    (plain, without), (model, options) = fits
    its, of_data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    assert without["callbacks"] == []
    (callback,), (listed,) = options["callbacks"], recipe["trainer"]["callbacks"]
    assert f"lightning_practices.callbacks.{type(callback).__name__}" == listed["class_path"]
    assert callback.schedule == listed["init_args"]["schedule"]
    assert options["max_epochs"] == recipe["trainer"]["max_epochs"]
    data = options["data"]
    assert (data.image_size, data.resize) == (of_data["image_size"], of_data["resize"])
    assert (plain.loss.label_smoothing, model.loss.label_smoothing) == (0.0, its["label_smoothing"])
    theirs = get_model(its["architecture"], num_classes=2)
    assert [*plain.network.state_dict()] == [*theirs.state_dict()]
    add_drop_block(theirs, its["drop_block"], its["block_size"])
    assert repr(model.network) == repr(theirs)
    rate = its["optimizer"]["init_args"]
    assert (model.optimizer.name, model.optimizer.weight_decay) == (
        rate["name"], rate["weight_decay"],
    )  # fmt: skip
    whole = of_data["batch_size"] * recipe["trainer"]["accumulate_grad_batches"]
    assert model.optimizer.lr == pytest.approx(rate["lr"] * 8 / whole)
    assert model.schedule.name == its["schedule"]["init_args"]["name"]
    assert model.schedule.warmup_steps == 5 * 3  # five epochs of three batches


@pytest.mark.parametrize("name", ON_FOLDER)
@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (None, "there is no folder"),
        ([], "find any class folder"),
        (["red"], "has one class, 'red', and a classifier needs two"),
        (["train/red", "val/red"], "has one class, 'red'"),
        (["train/red", "train/blue"], "has no folder 'val'"),
        (["train/red", "train/blue", "val/red"], r"lacks \['blue'\]"),
        (["training/red", "validation/red"], "training has folders in it"),
        (["red", "blue"], "at least three samples"),
        (["train/red", "train/blue", "val/red", "val/blue"], "has 4 images to train on, but a"),
    ],
)
def test_folders_that_do_not_serve_are_refused(
    name: str, folders: list[str] | None, message: str, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    if folders is not None:
        root.mkdir()
        for folder in folders:
            (root / folder).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8)).save(root / folder / f"{i}.png")
    table = ON_FOLDER[name]
    (settings, *_) = Results(table, tiny=True, data=str(root)).different_settings()
    with pytest.raises(DataError, match=message):
        table.experiment(seed=0, **settings)
