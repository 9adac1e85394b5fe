"""A preprocessing layer of a module, fitted to the training data by the callback."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_practices.callbacks import FitPreprocessing
from lightning_practices.data import Compose, MinMax, Standardize
from lightning_practices.mixins import TrainingPractices
from tests.mixins.preprocessed import Counted, Net, samples
from tests.processes import run


class Scaled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(  # type: ignore[assignment]
            Compose([Standardize(), MinMax()]), nn.Linear(3, 1)
        )


def fit(net: Net, train: Any, path: Path, callback: FitPreprocessing, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"max_epochs": 1, "enable_checkpointing": False, "logger": False}
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        **settings | options,
    )
    validation = DataLoader(TensorDataset(*samples(10, 2)), batch_size=5)
    trainer.fit(net, train, validation, ckpt_path=ckpt_path)
    return trainer


def loader(train: Counted) -> DataLoader[Any]:
    return DataLoader(train, batch_size=4, shuffle=True, drop_last=True)


def test_the_layer_has_the_statistics_of_the_training_split(tmp_path: Path) -> None:
    train, net = Counted(*samples(26, 1)), Scaled()
    trainer = fit(net, loader(train), tmp_path, FitPreprocessing())
    y = net.net[0](train.x)  # type: ignore[index]
    assert (float(y.min()), float(y.max())) == (-1.0, 1.0)
    assert int(train.reads.sum()) == 2 * 26 + 24  # twice for two layers, and one epoch
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = Scaled()
    fit(
        again,
        loader(train),
        tmp_path,
        FitPreprocessing(),
        ckpt_path=tmp_path / "one.ckpt",
        max_epochs=2,
    )
    assert int(train.reads.sum()) == 2 * 26 + 2 * 24
    assert torch.equal(again.net[0](train.x), y)  # type: ignore[index]
    assert torch.equal(Scaled.load_from_checkpoint(tmp_path / "one.ckpt").net[0](train.x), y)  # type: ignore[index]


def test_it_works_beside_exact_resume(tmp_path: Path) -> None:
    class Whole(TrainingPractices, Scaled):  # type: ignore[misc]
        pass

    train, net = Counted(*samples(26, 1)), Whole(checkpoint=None)
    fit(net, loader(train), tmp_path, FitPreprocessing())
    expected = Compose([Standardize(), MinMax()]).fit(train.x)(train.x)
    assert torch.equal(net.net[0](train.x), expected)  # type: ignore[index]


def test_fast_dev_run_reads_as_many_batches_as_it_trains(tmp_path: Path) -> None:
    train, net = Counted(*samples(26, 1)), Net()
    net.net = nn.Sequential(Standardize(), nn.Linear(3, 1))  # type: ignore[assignment]
    fit(net, loader(train), tmp_path, FitPreprocessing(), fast_dev_run=2)
    assert int(train.reads.sum()) == 2 * 4 + 2 * 4


def test_which_layer_is_asked_for(tmp_path: Path) -> None:
    train = loader(Counted(*samples(26, 1)))
    with pytest.raises(MisconfigurationException, match=r"which has none: .*self.scale = Stand"):
        fit(Net(), train, tmp_path, FitPreprocessing())
    net = Net()
    net.inputs, net.targets = Standardize(), Standardize()
    with pytest.raises(MisconfigurationException, match="has 'inputs', 'targets': give layer="):
        fit(net, train, tmp_path, FitPreprocessing())
    with pytest.raises(MisconfigurationException, match="layer 'input' of Net"):
        fit(net, train, tmp_path, FitPreprocessing("input"))
    fit(net, train, tmp_path, FitPreprocessing("targets", entry=1))
    assert net.targets.is_fitted
    assert not net.inputs.is_fitted
    with pytest.raises(MisconfigurationException, match="reads a DataLoader, but got a list"):
        fit(net, [train], tmp_path, FitPreprocessing("inputs"))


def fit_on_ranks(path: Path) -> list[Tensor]:
    net = Scaled()
    train = Counted(*samples(27, 1))
    fit(net, loader(train), path, FitPreprocessing(), devices=2, strategy="ddp")
    return [*net.net[0].state_dict().values(), net.net[1].weight.detach()]  # type: ignore[index]


def test_ranks_share_their_statistics(tmp_path: Path) -> None:
    first, second = run(fit_on_ranks, [(tmp_path,)] * 2)
    assert all(map(torch.equal, first, second))
    expected = Compose([Standardize(), MinMax()]).fit(samples(27, 1)[0])
    for ours, whole in zip(first, expected.state_dict().values(), strict=False):
        torch.testing.assert_close(ours, whole)
