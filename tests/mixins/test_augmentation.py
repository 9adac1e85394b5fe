"""Augmentation in real fits: in the workers and on the device, of training images alone."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, seed_everything
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from lightning_practices.callbacks import ExactResume, RecalibrateBatchNorm
from lightning_practices.data import Augmentation, Standardize, augmentation
from lightning_practices.ensembles import MonteCarloDropout
from lightning_practices.mixins import (
    AugmentationMixin,
    DataPractices,
    MonteCarloDropoutMixin,
    PreprocessingMixin,
)
from tests.callbacks.scripted import FILTERS, same, state_of
from tests.mixins.augmented import (
    CLASSES,
    COUNT,
    Data,
    Net,
    Plain,
    SaveAt,
    fitted,
    images,
    rows,
    split,
    trainer,
)

pytestmark = FILTERS
places = pytest.mark.parametrize("place", ["workers", "device"])
AUGMENT = ["crop", "rotation", v2.RandAugment()]


@places
def test_training_images_alone_are_augmented(place: Any) -> None:
    class Predicting(MonteCarloDropoutMixin, Net):
        def __init__(self) -> None:
            super().__init__(monte_carlo_dropout=MonteCarloDropout("multiclass", passes=2))

    net, data = Predicting(), Data(augment=AUGMENT, augment_on=place)
    one = trainer(max_epochs=2)
    one.fit(net, datamodule=data)
    one.validate(net, datamodule=data, verbose=False)
    one.test(net, datamodule=data, verbose=False)
    one.predict(net, datamodule=data)
    other, train = rows(data.other.tensors[0]), rows(data.train.tensors[0])
    for name in ("val", "test", "predict"):
        assert rows(images(net.got[name])) == other, name
    assert len(net.got["predict"]) == 2  # passes of Monte Carlo dropout
    seen = rows(images(net.got["train"]))
    assert len(seen) > 1.9 * COUNT  # other ones in each epoch
    assert len(seen & train) < 3
    targets = torch.cat([batch[1] for batch in net.got["train"][:4]])
    assert sorted(targets.tolist()) == sorted(data.train.tensors[1].tolist())


@places
@pytest.mark.parametrize("first", ["augmentation", "preprocessing"])
def test_augmentation_comes_first_and_statistics_are_of_plain_samples(
    place: Any, first: str
) -> None:
    mixins = (AugmentationMixin, PreprocessingMixin)
    bases = mixins if first == "augmentation" else mixins[::-1]
    kind: Any = type("Ordered", (*bases, Plain), {})
    data = kind(augment=AUGMENT, augment_on=place, preprocess="standardize")
    bare = Data(augment=AUGMENT, augment_on=place)
    nets = []
    for one in (data, bare):
        seed_everything(3, verbose=False)
        nets.append(fitted(one))
    layer = Standardize().fit(data.train.tensors[0])
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(data.preprocessing.layers[0].state_dict()[name], value)
    for preprocessed, plain in zip(nets[0].got["train"], nets[1].got["train"], strict=True):
        torch.testing.assert_close(preprocessed[0], layer(plain[0]))
    torch.testing.assert_close(nets[0].got["val"][-1][0], layer(data.other.tensors[0]))


def test_an_own_method_for_statistics_reads_plain_samples() -> None:
    class Own(Data):
        def preprocessing_dataloader(self) -> Any:
            return DataLoader(self.train_dataloader().dataset, 3)

        def train_dataloader(self) -> Any:
            return super().train_dataloader()

    data = Own(augment=AUGMENT, preprocess="standardize")
    data.fit_preprocessing()
    assert data.preprocessing is not None
    found, expected = data.preprocessing.layers[0], Standardize().fit(data.train.tensors[0])
    torch.testing.assert_close(found.mean, expected.mean)
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 6, 6)  # augmented once


@places
@pytest.mark.parametrize("given", ["rand", "auto", "trivial", "brightness"])
def test_a_dataset_that_standardises_is_refused(place: Any, given: Any) -> None:
    data = Data(augment=given, augment_on=place)
    fitted(data)
    data.train = TensorDataset((data.train.tensors[0] - 0.5) / 0.3, data.train.tensors[1])
    with pytest.raises(ValueError, match="augment first and standardise afterwards"):
        fitted(data)  # though the first fit's images were right


@places
def test_images_of_bytes(place: Any) -> None:
    mixup = augmentation("mixup", num_classes=CLASSES)
    data = Data(augment=["rand", "small_images", mixup], augment_on=place, preprocess="standardize")
    for name in ("train", "other"):
        x, y = getattr(data, name).tensors
        setattr(data, name, TensorDataset((x * 255).to(torch.uint8), y))
    net = fitted(data)
    layer = Standardize().fit(data.train.tensors[0])
    assert torch.equal(net.got["val"][-1][0], layer(data.other.tensors[0]))
    for x, _ in net.got["train"]:
        pixels = layer.inverse(x)
        torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)  # mixed ones too
        assert pixels.min() > -1e-3
        assert pixels.max() < 255 + 1e-3


@places
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [2, 6])
def test_a_resumed_fit_draws_as_without_the_interruption(
    place: Any, workers: int, step: int, tmp_path: Path
) -> None:
    own = v2.Lambda(lambda x: x * (0.5 + random.random()) * (0.5 + np.random.rand()))
    mixup = augmentation("mixup", num_classes=CLASSES)

    def data() -> Data:
        return Data(workers, augment=["crop", "trivial", own, mixup], augment_on=place)

    seed_everything(1, verbose=False)
    whole = fitted(data(), ExactResume(), SaveAt(tmp_path / "a.ckpt", step))
    seed_everything(2, verbose=False)
    rest = fitted(data(), ExactResume(), resume=tmp_path / "a.ckpt")
    assert len(rest.got["train"]) == 8 - step
    for a, b in zip(whole.got["train"][step:], rest.got["train"], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert same(state_of(whole), state_of(rest))


def test_the_number_of_workers_does_not_matter() -> None:
    found = []
    for workers in (0, 1, 2):
        seed_everything(1, verbose=False)
        found.append(images(fitted(Data(workers, augment=AUGMENT)).got["train"]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_on_the_device_torchs_generators_do_not_move() -> None:
    found = []
    for data in (Data(), Data(augment=AUGMENT, augment_on="device")):
        seed_everything(1, verbose=False)
        targets = torch.cat([batch[1] for batch in fitted(data).got["train"]])
        found.append((targets, torch.rand(3)))
    assert torch.equal(found[0][0], found[1][0])  # the order of the samples
    assert torch.equal(found[0][1], found[1][1])


def test_on_the_device_draws_depend_on_seed_epoch_and_batch(tmp_path: Path) -> None:
    class Same(Data):
        def train_dataloader(self) -> Any:
            x = self.train.tensors[0][:1].expand(8, -1, -1, -1)
            return DataLoader(TensorDataset(x, torch.zeros(8, dtype=torch.int64)), 4)

    def seen(seed: int) -> Tensor:
        seed_everything(seed, verbose=False)
        return images(fitted(Same(augment="digits", augment_on="device")).got["train"])

    first = seen(1)
    assert len(rows(first)) == 16
    assert torch.equal(first, seen(1))
    assert not rows(first) & rows(seen(2))


@places
def test_recalibration_of_batch_norms_reads_plain_images(place: Any) -> None:
    class Watching(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and self.trainer.training:
                self.got["predict"].append((x,))
            return super().forward(x)

    data = Data(augment=AUGMENT, augment_on=place)
    net = fitted(data, RecalibrateBatchNorm(), module=Watching)
    assert rows(images(net.got["predict"])) == rows(data.train.tensors[0])


def test_mixup_mixes_on_the_device_after_the_workers() -> None:
    mixup = augmentation("mixup", num_classes=CLASSES)
    for place in ("workers", "device"):
        data = Data(augment=[mixup, "vertical_flip"], augment_on=place, preprocess="standardize")
        net = fitted(data)
        for x, y in net.got["train"]:
            assert y.shape == (len(x), CLASSES)
            torch.testing.assert_close(y.sum(1), torch.ones(len(x)))
        assert net.got["val"][-1][1].shape == (5,)
        assert len(rows(images(net.got["train"]))) == 2 * COUNT
    with pytest.raises(ValueError, match="give num_classes"):
        fitted(Data(augment="cutmix"))


def test_entries_of_dicts() -> None:
    class Named(Data):
        def train_dataloader(self) -> Any:
            pairs = zip(*self.train.tensors, strict=True)
            return DataLoader([{"image": x, "label": y} for x, y in pairs], 4)  # type: ignore[arg-type]

    class Reading(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch["image"], batch["label"]), batch_idx)

    given = [*AUGMENT, augmentation("cutmix", num_classes=CLASSES)]
    for place in ("workers", "device"):
        entries: dict[str, Any] = {"augment_entry": "image", "augment_target": "label"}
        data = Named(augment=given, augment_on=place, **entries)
        net = fitted(data, module=Reading, limit_val_batches=0)
        assert net.got["train"][0][1].shape == (4, CLASSES)
        with pytest.raises(KeyError, match="the entries are 'image', 'label'; give augment_entry"):
            fitted(Named(augment="flip", augment_on=place), module=Reading)


@pytest.mark.parametrize("kind", ["dict", "combined"])
def test_several_loaders(kind: str) -> None:
    class Several(Data):
        def train_dataloader(self) -> Any:
            both = {"long": DataLoader(self.train, 4), "short": DataLoader(self.train, 7)}
            return both if kind == "dict" else CombinedLoader(both, "max_size_cycle")

    class Reading(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = (torch.cat([one[entry] for one in batch.values()]) for entry in (0, 1))
            return super().training_step((x, y), batch_idx)

    net = fitted(Several(augment="digits"), module=Reading)
    seen = images(net.got["train"])
    assert len(rows(seen)) == len(seen) == 2 * (14 + 28)  # the short one is read twice an epoch


class Batches:
    """An iterable of batches that is no DataLoader."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_loaders_that_workers_cannot_augment() -> None:
    class Listed(Data):
        def train_dataloader(self) -> Any:
            return Batches([[one[:4] for one in self.train.tensors]])

    with pytest.raises(TypeError, match="augment_on='device'"):
        # not in a fit: after an error here Lightning leaves DataLoader.__init__ wrapped
        Listed(augment="flip").train_dataloader()
    net = fitted(Listed(augment="digits", augment_on="device"), max_epochs=1)
    assert not rows(net.got["train"][0][0]) & rows(split(COUNT, 1).tensors[0])


@places
def test_another_fit_and_reloaded_loaders(place: Any) -> None:
    data = Data(augment="digits", augment_on=place)
    seen = []
    for seed in (1, 1, 2):
        seed_everything(seed, verbose=False)
        net = fitted(data, max_epochs=3, reload_dataloaders_every_n_epochs=1)
        seen.append(images(net.got["train"]))
        assert len(rows(seen[-1])) == 3 * COUNT
    assert torch.equal(seen[0], seen[1])
    assert not rows(seen[0]) & rows(seen[2])


@places
def test_overfitting_on_few_batches(place: Any) -> None:
    class InOrder(Data):
        def train_dataloader(self) -> Any:
            return DataLoader(self.train, 4)

    data = InOrder(augment="digits", augment_on=place)
    seen = images(fitted(data, overfit_batches=2).got["train"])
    assert len(rows(seen)) == 2 * 8
    assert not rows(seen) & rows(data.train.tensors[0])


def test_without_a_trainer_the_training_loader_is_augmented() -> None:
    data = Data(augment=AUGMENT)
    x = images(list(data.train_dataloader()))
    assert not rows(x) & rows(data.train.tensors[0])
    assert rows(images(list(data.val_dataloader()))) == rows(data.other.tensors[0])
    net = fitted(data)
    one = trainer()
    one.predict(net, datamodule=data)
    plain = images(list(data.train_dataloader()))  # for predictions on the training split
    assert rows(plain) == rows(data.train.tensors[0])
    assert Data().augmentation is None
    assert not hasattr(next(iter(Data().train_dataloader())), "augmentation")


def test_an_inherited_loader_and_a_subclass() -> None:
    class Further(Data):
        def train_dataloader(self) -> Any:
            loader = super().train_dataloader()
            assert loader.dataset is self.train  # augmented by the outermost method alone
            return loader

    for kind in (Further, type("More", (Further,), {})):
        seen = images(fitted(kind(augment=AUGMENT)).got["train"])
        assert not rows(seen) & rows(split(COUNT, 1).tensors[0])


def test_checkpoints_load_with_weights_only(tmp_path: Path) -> None:
    class Saved(Data):
        def __init__(self, size: int = 3, **practices: Any) -> None:
            super().__init__(**practices)
            self.save_hyperparameters()

    for given in (
        augmentation("rotation"),
        v2.RandAugment(),
        ["flip", v2.RandomErasing()],
    ):
        assert dict(Saved(augment=given).hparams) == {"size": 3}
    data = Saved(augment="flip", augment_on="device")
    assert dict(data.hparams) == {"size": 3, "augment": "flip", "augment_on": "device"}
    fitted(data, SaveAt(tmp_path / "a.ckpt", 2))
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert torch.initial_seed() in checkpoint[Saved.__qualname__].values()


def test_bad_arguments() -> None:
    for options, error, message in (
        ({"augment": "flips"}, ValueError, "augment: transforms has to be .*did you mean 'flip'"),
        ({"augment": 3}, TypeError, "augment: transforms has to be a name .* but got 3"),
        ({"augment": []}, ValueError, "augment: transforms has to hold at least one"),
        ({"augment_on": "gpu"}, ValueError, "augment_on has to be 'workers' or 'device', but got"),
        (
            {"augment_entry": 1.5},
            TypeError,
            "augment_entry has to be a position in a tuple or a key of a dict, but got 1.5",
        ),
        ({"augment_target": None}, TypeError, "augment_target has to be a position"),
    ):
        with pytest.raises(error, match=message):
            Data(**options)
    bare: Any = type("Bare", (DataPractices, LightningDataModule), {})
    with pytest.raises(TypeError, match="no argument 'augmnt': did you mean 'augment'"):
        bare(augmnt="flip")


def test_the_layer_in_a_module() -> None:
    """Any training loop: as a layer it follows train and eval, and has no weights."""
    layer = nn.Sequential(Augmentation("digits"), nn.Flatten())
    x = split(4, 1).tensors[0]
    assert not layer.state_dict()
    assert torch.equal(layer.eval()(x), x.flatten(1))
    assert not torch.equal(layer.train()(x), x.flatten(1))
