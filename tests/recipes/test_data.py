"""What the datamodules of the recipes say about data that isn't as expected."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from lightning_practices.nn import DropBlock2d
from lightning_practices.recipes import (
    DataError,
    DigitsClassifier,
    DigitsData,
    ImageFolderData,
    MissingPackageError,
    SequenceData,
    TabularData,
    TextData,
    add_drop_block,
    load_weights,
)

pytestmark = pytest.mark.plain


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def images(*places: str) -> None:
    for place in places:
        Path("images", place).mkdir(parents=True)
        Image.new("L", (8, 8)).save(Path("images", place, "1.png"))


def empty_class() -> None:
    images("train/cat", "train/dog", "val/cat", "val/dog")
    Path("images/train/cow").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "there is no folder images"),
        (lambda: images("cat", "dog"), r"images has no folder 'train', only \['cat', 'dog'\]"),
        (lambda: Path("images/train").mkdir(parents=True), "images/train: .*any class folder"),
        (lambda: images("train/cat", "val/cat"), "has one class, 'cat'"),
        (lambda: images("train/cat", "train/dog"), r"no folder 'val', only \['train'\]"),
        (lambda: images("train/cat", "train/dog", "val/dog", "val/elk"),
         r"lacks \['cat'\], and has \['elk'\] in addition"),
        (empty_class, "cow"),
    ],
)  # fmt: skip
def test_folders_of_images(make: Callable[[], None], message: str) -> None:
    make()
    with pytest.raises(DataError, match=message) as raised:
        ImageFolderData(Path("images"))
    assert "|-- train\n    |   |-- cat\n" in str(raised.value)


def test_training_images_have_room_for_a_crop() -> None:
    images("train/cat", "train/dog", "val/cat", "val/dog")
    data = ImageFolderData(Path("images"), image_size=6, resize=10, num_workers=0)
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 10, 10)
    assert next(iter(data.val_dataloader()))[0].shape == (2, 3, 6, 6)
    assert data.num_classes == 2


def many(*places: str) -> None:
    for place in places:
        Path("images", place).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (8, 8)).save(Path("images", place, f"{i}.png"))


def test_a_folder_of_classes_is_split_by_the_seed() -> None:
    many("cat", "dog")
    shares = []
    for seed in (0, 0, 1):
        data = ImageFolderData(Path("images"), image_size=8, num_workers=0, split_seed=seed)
        assert data.class_names == ["cat", "dog"]
        parts: list[Any] = [data.dataset(split) for split in ("train", "val", "test")]
        assert [len(part) for part in parts] == [6, 2, 2]
        assert sorted(i for part in parts for i in part.indices) == [*range(10)]
        assert sorted(label for _, label in parts[2]) == [0, 1]  # equal shares
        shares.append([part.indices for part in parts])
    assert shares[0] == shares[1] != shares[2]
    assert len(data.test_dataloader().dataset) == 2  # type: ignore[arg-type]


def test_a_folder_with_splits_is_not_split_again() -> None:
    many("train/cat", "train/dog", "val/cat", "val/dog")
    plain, seeded = (
        ImageFolderData(Path("images"), num_workers=0, split_seed=seed) for seed in (None, 3)
    )
    for split in ("train", "val", "test"):
        first: Any = plain.dataset(split)
        second: Any = seeded.dataset(split)
        assert first.imgs == second.imgs
        assert len(first) == 10


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["cat"], "has one class, 'cat', and a classifier needs two"),
        (["training/cat", "validation/cat"], "images/training has folders in it"),
        (["train/cat", "train/dog"], "has no folder 'val'"),
        (["val/cat", "val/dog"], "has no folder 'train'"),
    ],
)
def test_folders_that_are_no_classes_are_not_split(places: list[str], message: str) -> None:
    many(*places)
    with pytest.raises(DataError, match=message) as raised:
        ImageFolderData(Path("images"), split_seed=0)
    assert "With split_seed, images may hold the folders of the classes" in str(raised.value)


def test_a_class_of_two_images_is_not_split() -> None:
    many("cat", "dog")
    for i in range(3):
        Path("images", "dog", f"{i}.png").unlink()
    with pytest.raises(DataError, match="at least three samples"):
        ImageFolderData(Path("images"), split_seed=0)


ROWS = ["kind,a,b", *(f"{'yn'[i % 2]},{i},{2 * i}" for i in range(10))]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (None, {"target": "kind"}, "there is no file table.csv"),
        (ROWS[:1], {"target": "kind"}, "has no rows"),
        (ROWS, {}, r"give target=..., one of \['kind', 'a', 'b'\]"),
        (ROWS, {"target": "kin"}, "no column 'kin': did you mean 'kind'"),
        (ROWS, {"target": "kind", "columns": ["a", "zeta"]}, r"no column 'zeta': it has"),
        (ROWS, {"target": "kind", "columns": ["kind"]}, "other than the target"),
        (ROWS, {"target": "a"}, "has 'y' in column 'kind', which is no number"),
        ([*ROWS, "y,,3"], {"target": "kind"}, "line 12 of table.csv has '' in column 'a'"),
        ([ROWS[0], "y,1,2"] * 1, {"target": "kind"}, "two classes or more, but the data has 1"),
        (ROWS, {"target": "b", "columns": ["a"]}, "10 of 10 classes have fewer: .* regression"),
    ],
)
def test_tables(rows: list[str] | None, options: dict[str, Any], message: str) -> None:
    if rows is not None:
        Path("table.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=message):
        TabularData(Path("table.csv"), **options)


def test_the_splits_of_a_table_are_disjoint_and_hold_each_class() -> None:
    rows = ["kind,number", *(f"{'yn'[i % 5 == 0]},{i}" for i in range(100))]
    Path("table.csv").write_text("\n".join(rows))
    data = TabularData(Path("table.csv"), "kind", batch_size=100)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    splits = [next(iter(loader)) for loader in loaders]
    assert sorted(torch.cat([x for x, _ in splits]).flatten().tolist()) == list(range(100))
    assert [y.bincount().tolist() for _, y in splits] == [[12, 48], [4, 16], [4, 16]]  # n, y


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "there is no file own.npz"),
        ({"x": numpy.ones((4, 2, 3))}, r"has the arrays \['x'\]"),
        ({"x": numpy.ones((4, 2)), "y": numpy.ones(4, int)}, r"x of shape \(4, 2\)"),
        ({"x": numpy.ones((4, 2, 3)), "y": numpy.ones(4)}, "type float64"),
    ],
)
def test_sequences(arrays: dict[str, Any] | None, message: str) -> None:
    if arrays is not None:
        numpy.savez("own.npz", **arrays)
    with pytest.raises(DataError, match=message):
        SequenceData(Path("own.npz"))


def test_a_file_that_is_no_archive_of_arrays() -> None:
    Path("own.npz").write_text("text")
    with pytest.raises(DataError, match="is no NPZ file"):
        SequenceData(Path("own.npz"))


def test_text() -> None:
    with pytest.raises(DataError, match=r"there is no file own\.txt"):
        TextData(Path("own.txt"))
    Path("own.txt").write_bytes(bytes(range(64)))
    with pytest.raises(DataError, match="has 64 bytes: with length=4 at least 81"):
        TextData(Path("own.txt"), length=4)
    data = TextData(Path("own.txt"), length=3, batch_size=99)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    train, val, test = (next(iter(loader))[0] for loader in loaders)
    # Each byte but the first is a target once, and the input of each target is the one before it.
    assert sorted(torch.cat([train, val, test])[:, 1:].flatten().tolist()) == list(range(1, 64))
    assert val.tolist() == [[57, 58, 59, 60]]
    assert test.tolist() == [[60, 61, 62, 63]]


def test_text_of_python_is_there() -> None:
    assert len(TextData().train_dataloader()) > 50


@pytest.mark.parametrize("make", [DigitsData, TabularData, SequenceData])
def test_without_scikit_learn(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"'lightning-practices\[recipes\]'"):
        make()


def test_weights_of_another_architecture() -> None:
    own = resnet18(num_classes=3)
    torch.save({"fc.weight": torch.ones(2), "conv1.weight": torch.ones(3)}, "other.pt")
    with pytest.raises(DataError, match=r"other.pt are not those of this ResNet: .* are missing"):
        load_weights(own, Path("other.pt"), ("fc",))
    Path("text.pt").write_text("text")
    with pytest.raises(DataError, match=r"text\.pt holds no weights that"):
        load_weights(own, Path("text.pt"))
    expected = resnet18(num_classes=5)
    torch.save(expected.state_dict(), "same.pt")
    head = own.fc.weight.clone()
    load_weights(own, Path("same.pt"), ("fc",))
    assert torch.equal(own.layer4[1].conv2.weight, expected.layer4[1].conv2.weight)
    assert torch.equal(own.fc.weight, head)


def test_drop_block_is_where_its_authors_put_it() -> None:
    network = resnet18()
    expected = resnet18()
    expected.load_state_dict(network.state_dict())
    add_drop_block(network, 0.1, 5)
    layers: dict[str, Any] = {
        name: one for name, one in network.named_modules() if isinstance(one, DropBlock2d)
    }
    assert len(layers) == 2 * 2 * 3  # two stages of two blocks, with two norms and a shortcut
    found = {(name[:6], one.p, one.block_size) for name, one in layers.items()}
    assert found == {("layer3", 0.025, 5), ("layer4", 0.1, 5)}
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(x), expected.eval()(x))
    network.train()
    assert not torch.equal(network(x), network(x))
    with pytest.raises(DataError, match="torchvision's ResNets only"):
        add_drop_block(nn.Linear(2, 2), 0.1)


def test_a_classifier_asks_for_the_classes_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"give DigitsClassifier\(num_classes=\.\.\.\)"):
        DigitsClassifier().configure_model()
    module = DigitsClassifier(num_classes=3)
    module.configure_model()
    assert module(torch.ones(2, 1, 8, 8)).shape == (2, 3)
