"""Preprocessing beside hooks of a user's own, and what its mixins refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

from lightning_practices import mixins
from lightning_practices.data import Standardize
from lightning_practices.mixins import PreprocessedMixin, PreprocessingMixin
from tests.mixins.preprocessed import (
    Data,
    Keeping,
    Net,
    Plain,
    inputs,
    samples,
    trainer,
)


class Bytes(Plain):
    """Has raw samples, which its hooks scale."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 3, batch[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] / 255, batch[1]


def test_statistics_are_of_what_the_hooks_of_bases_make_of_batches(tmp_path: Path) -> None:
    class Scaled(PreprocessingMixin, Bytes):
        pass

    net, data = Net(), Scaled(preprocess="standardize")
    trainer(tmp_path).fit(net, datamodule=data)
    layer = Standardize().fit(data.train.x * 3 / 255)
    expected = layer(data.other.tensors[0] * 3 / 255)
    torch.testing.assert_close(inputs(net.got["val"])[-10:], expected)


class Own(PreprocessedMixin, Net):
    """Has hooks of its own, which don't call ``super()``."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["own"] == 1


class Doubling(PreprocessedMixin, Net):
    """Has a transfer hook of its own."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = super().on_after_batch_transfer(batch, dataloader_idx)
        return x * 2, y


def test_own_hooks_of_the_module_stay(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    one.fit(Own(), datamodule=Data(preprocess="standardize"))
    one.save_checkpoint(tmp_path / "one.ckpt")
    assert Own.load_from_checkpoint(tmp_path / "one.ckpt").preprocessing is not None
    net = Doubling()
    net.preprocessing = Own.load_from_checkpoint(tmp_path / "one.ckpt").preprocessing
    x, y = samples(10, 2)
    trainer(tmp_path).predict(net, DataLoader(TensorDataset(x, y), 5))
    assert net.preprocessing is not None
    assert torch.equal(inputs(net.got["predict"]), 2 * net.preprocessing((x, y))[0])


class Shifting(Data):
    """Has hooks of its own, and no ``super()`` in ``setup``."""

    def setup(self, stage: str) -> None:
        pass

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = super().on_after_batch_transfer(batch, dataloader_idx)
        return x + 1, y


def test_own_hooks_of_the_datamodule_stay(tmp_path: Path) -> None:
    net, data = Net(), Shifting(preprocess="standardize")
    trainer(tmp_path).fit(net, datamodule=data)
    expected = Standardize().fit(data.train.x)(data.other.tensors[0]) + 1
    assert torch.equal(inputs(net.got["val"])[-10:], expected)


class Silent(Shifting):
    """Has a hook that leaves out those of its bases."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def test_an_own_hook_without_super_is_an_error_where_it_matters(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Silent\.on_after_batch_transfer doesn't call"):
        trainer(tmp_path).fit(Net(), datamodule=Silent(preprocess="center"))
    trainer(tmp_path).fit(Net(), datamodule=Silent())


class Passing:
    """Brings a hook that leaves out those of the classes after it."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Deaf(Passing, PreprocessedMixin, Net):
    pass


class Mute(PreprocessedMixin, Net):
    on_after_batch_transfer = Passing.on_after_batch_transfer


@pytest.mark.parametrize(("kind", "name"), [(Deaf, "Passing"), (Mute, "Mute")])
@pytest.mark.filterwarnings("ignore:You have overridden .on_after_batch_transfer. in both")
def test_so_it_is_for_a_module_that_preprocesses(kind: Any, name: str, tmp_path: Path) -> None:
    net, data = kind(), Data(preprocess="center")
    trainer(tmp_path).fit(net, datamodule=data)  # where the datamodule preprocesses
    loader = data.predict_dataloader()
    with pytest.raises(RuntimeError, match=rf"{name}\.on_after_batch_transfer doesn't call super"):
        trainer(tmp_path).predict(net, loader)
    net.preprocessing = None
    trainer(tmp_path).predict(net, loader)


@pytest.mark.parametrize("mixin", ["PreprocessingMixin", "AugmentationMixin", "DataPractices"])
def test_a_skipped_constructor_is_an_error(mixin: str, tmp_path: Path) -> None:
    def constructor(self: Any) -> None:
        Plain.__init__(self)

    kind = type("Skipping", (getattr(mixins, mixin), Plain), {"__init__": constructor})
    with pytest.raises(RuntimeError, match="the mixins of Skipping have no settings"):
        trainer(tmp_path).fit(Net(), datamodule=kind())


def test_bad_arguments_and_bases() -> None:
    bare = type("Bare", (PreprocessingMixin, LightningDataModule), {})
    with pytest.raises(TypeError, match="Bare has no argument 'preproces': did you mean 'preproc"):
        bare(preproces="center")
    with pytest.raises(ValueError, match="standardize"):
        Data(preprocess="standardise")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lists PreprocessingMixin after LightningDataModule"):
        type("Late", (LightningDataModule, PreprocessingMixin), {})
    with pytest.raises(TypeError, match="is no LightningDataModule: add the class"):
        type("Alone", (PreprocessingMixin,), {})()
    several = type("Several", (Data,), {"train_dataloader": lambda self: [DataLoader(self.train)]})
    with pytest.raises(TypeError, match=r"override Several\.preprocessing_dataloader"):
        several(preprocess="center").fit_preprocessing()


def test_a_module_without_datamodule_is_not_overridden() -> None:
    from lightning.pytorch.utilities.model_helpers import is_overridden

    assert not is_overridden("on_after_batch_transfer", Keeping(), LightningModule)
