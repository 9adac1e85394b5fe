"""The preprocessing of datamodules in real fits: statistics of the training split, used once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_practices.data import MinMax, Standardize
from lightning_practices.mixins import TrainingPractices
from tests.mixins.preprocessed import (
    Counted,
    Data,
    Keeping,
    Net,
    Plain,
    inputs,
    samples,
    trainer,
)
from tests.processes import run

modules = pytest.mark.parametrize("module", [Net, Keeping])


@modules
def test_all_splits_are_preprocessed_alike_once_and_by_the_training_split(
    module: type[Net], tmp_path: Path
) -> None:
    net, data = module(), Data(preprocess="standardize")
    one = trainer(tmp_path)
    one.fit(net, datamodule=data)
    one.test(net, datamodule=data, verbose=False)
    one.predict(net, datamodule=data)
    layer = Standardize().fit(data.train.x)
    other = layer(data.other.tensors[0])
    for name, epochs in (("val", 3), ("test", 1), ("predict", 1)):  # a sanity check first
        assert torch.equal(inputs(net.got[name])[-10:], other), name
        assert len(inputs(net.got[name])) == 10 * epochs
    trained = inputs(net.got["train"])
    expected = {tuple(row.tolist()) for row in layer(data.train.x)}
    assert {tuple(row.tolist()) for row in trained} <= expected
    assert data.preprocessing is not None
    buffers = data.preprocessing.layers[0].buffers()
    assert not any(buffer.is_inference() for buffer in buffers)  # though it was fitted in one
    # Each sample once for the statistics, though the loader drops the last two; 24 a an epoch.
    assert int(data.train.reads.sum()) == 26 + 2 * 24
    assert all(torch.equal(batch[1], batch[1]) for batch in net.got["train"])
    assert net.got["val"][-1][1].abs().max() > 10  # targets stay as they are


def test_other_splits_do_not_reach_the_statistics(tmp_path: Path) -> None:
    found = []
    for shift in (0.0, 1e6):
        data = type("Shifted", (Data,), {"shift": shift})(preprocess="whiten")
        trainer(tmp_path).fit(Net(), datamodule=data)
        found.append(data.preprocessing.layers[0].state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_targets_are_preprocessed_and_predictions_are_given_back(tmp_path: Path) -> None:
    net, data = Keeping(), Data(preprocess={0: "standardize", 1: MinMax((0, 1))})
    trainer(tmp_path).fit(net, datamodule=data)
    targets = torch.cat([batch[1] for batch in net.got["train"]])
    assert 0 <= float(targets.min()) < float(targets.max()) <= 1
    assert net.preprocessing is not None
    assert data.preprocessing is not None
    assert net.preprocessing.is_like(data.preprocessing)
    back = net.preprocessing.layers[1].inverse(targets)
    assert {round(v, 2) for v in back.flatten().tolist()} <= {
        round(v, 2) for v in data.train.y.flatten().tolist()
    }


@modules
@pytest.mark.parametrize("preprocess", ["standardize", "whiten", {0: "min_max", 1: "center"}])
def test_a_resumed_fit_does_not_read_the_split_again(
    module: type[Net], preprocess: Any, tmp_path: Path
) -> None:
    first = trainer(tmp_path, max_epochs=1)
    data = Data(preprocess=preprocess)
    first.fit(module(), datamodule=data)
    first.save_checkpoint(tmp_path / "one.ckpt")
    again, net = Data(preprocess=preprocess), module()
    trainer(tmp_path).fit(net, datamodule=again, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert int(again.train.reads.sum()) == 24
    assert data.preprocessing is not None
    assert again.preprocessing is not None
    for entry, layer in data.preprocessing.layers.items():
        for name, value in layer.state_dict().items():
            assert torch.equal(value, again.preprocessing.layers[entry].state_dict()[name])
    tested = Data(preprocess=preprocess)
    trainer(tmp_path).test(
        module(), datamodule=tested, ckpt_path=tmp_path / "one.ckpt", verbose=False
    )
    assert int(tested.train.reads.sum()) == 0


def test_a_loaded_module_preprocesses_without_the_datamodule(tmp_path: Path) -> None:
    net, data = Keeping(), Data(preprocess="standardize")
    one = trainer(tmp_path)
    one.fit(net, datamodule=data)
    one.save_checkpoint(tmp_path / "one.ckpt")
    expected = one.predict(net, datamodule=data)
    loaded = Keeping.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    found = trainer(tmp_path).predict(loaded, data.val_dataloader())
    assert expected is not None
    assert found is not None
    assert all(map(torch.equal, found, expected))
    # Nor with a datamodule that has no preprocessing, and not twice with one that has.
    for other in (Data(preprocess="standardize"), Data()):
        found = trainer(tmp_path).predict(loaded, datamodule=other)
        assert found is not None
        assert all(map(torch.equal, found, expected))
    with pytest.warns(UserWarning, match="It will use the implementation from `LightningModule`"):
        found = trainer(tmp_path).predict(loaded, datamodule=Plain())
    assert found is not None
    assert all(map(torch.equal, found, expected))
    x, _ = samples(10, 2)
    assert loaded.preprocessing is not None
    # A product of matrices may round otherwise for another size of the batch.
    torch.testing.assert_close(loaded.net(loaded.preprocessing(x)), torch.cat([*expected]))
    # The checkpoint is that of a plain module too, whose weights have no further keys.
    Net.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)


def test_a_loaded_module_that_trains_on_other_data_gets_their_statistics(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    one.fit(Keeping(), datamodule=Data(preprocess="standardize"))
    one.save_checkpoint(tmp_path / "one.ckpt")
    loaded = Keeping.load_from_checkpoint(tmp_path / "one.ckpt")
    data = Data(preprocess="standardize")
    data.train.x += 100
    trainer(tmp_path).fit(loaded, datamodule=data)
    assert loaded.preprocessing is not None
    assert torch.equal(
        loaded.preprocessing.layers[0].state_dict()["mean"], Standardize().fit(data.train.x).mean
    )


def test_a_trained_module_keeps_its_statistics_when_the_datamodule_is_fitted_again(
    tmp_path: Path,
) -> None:
    data, nets = Data(preprocess={0: "standardize", 1: "center"}), [Keeping(), Keeping()]
    means = []
    for net in nets:
        data.train.x += 100
        data.fit_preprocessing()
        trainer(tmp_path).fit(net, datamodule=data)
        means.append(Standardize().fit(data.train.x).mean)
    x = data.train.x
    for net, mean in zip(nets, means, strict=True):
        assert net.preprocessing is not None
        assert torch.equal(net.preprocessing.layers[0].state_dict()["mean"], mean)
        trainer(tmp_path).predict(net, datamodule=data)
        got = inputs(net.got["predict"])
        assert torch.equal(got, net.preprocessing.layers[0](data.other.tensors[0]))
    assert nets[0].preprocessing is not None
    assert float(nets[0].preprocessing(x).mean()) > 1  # a tensor alone is the input


def test_targets_may_be_missing_in_a_prediction(tmp_path: Path) -> None:
    net, data = Keeping(), Data(preprocess={0: "standardize", 1: "standardize"})
    one = trainer(tmp_path)
    one.fit(net, datamodule=data)
    expected = one.predict(net, datamodule=data)
    assert expected is not None
    alone = DataLoader(TensorDataset(data.other.tensors[0]), batch_size=5)
    found = trainer(tmp_path).predict(net, alone)
    assert found is not None
    assert all(map(torch.equal, found, expected))
    with pytest.raises(IndexError, match="there is no entry 1: there are 1, from 0 on"):
        trainer(tmp_path).validate(net, alone, verbose=False)


def test_training_practices_keep_it(tmp_path: Path) -> None:
    class Whole(TrainingPractices, Net):  # type: ignore[misc]
        pass

    one = trainer(tmp_path, enable_checkpointing=True)
    net, data = Whole(), Data(preprocess="standardize")
    one.fit(net, datamodule=data)
    assert net.checkpoint is not None
    loaded = Whole.load_from_checkpoint(net.checkpoint.best_model_path)
    assert loaded.preprocessing is not None
    assert data.preprocessing is not None
    assert loaded.preprocessing.is_like(data.preprocessing)


def loaders(kind: str, train: Counted) -> DataLoader[Any]:
    places = list(range(0, 26, 2))
    weights = [1000.0, *[1.0] * 25]
    return {
        "weighted": DataLoader(train, 4, sampler=WeightedRandomSampler(weights, 26)),
        "random": DataLoader(train, 4, sampler=RandomSampler(train, num_samples=5)),
        "subset": DataLoader(train, 4, sampler=SubsetRandomSampler(places)),
        "own": DataLoader(train, 4, sampler=places),
        "batches": DataLoader(train, batch_sampler=[places[:5], places[5:]]),
        "whole batches": DataLoader(train, batch_size=None),
        "workers": DataLoader(train, 4, num_workers=2),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("weighted", 1),
        ("random", 1),
        ("subset", 2),
        ("own", 2),
        ("batches", 2),
        ("workers", 1),
    ],
)
def test_statistics_are_of_the_samples_a_loader_can_draw(kind: str, step: int) -> None:
    class Drawn(Data):
        def train_dataloader(self) -> Any:
            return loaders(kind, self.train)

    data = Drawn(preprocess="standardize")
    data.fit_preprocessing()
    assert data.preprocessing is not None
    expected = Standardize().fit(data.train.x[::step]).state_dict()
    found = data.preprocessing.layers[0].state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_without_statistics_a_run_that_is_no_fit_raises(tmp_path: Path) -> None:
    for module in (Net(), Keeping()):
        with pytest.raises(RuntimeError, match="has no statistics: fit first, or give ckpt_path"):
            trainer(tmp_path).test(module, datamodule=Data(preprocess="center"), verbose=False)


def test_a_checkpoint_of_another_preprocessing_is_refused(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    for module in (Net, Keeping):
        one.fit(module(), datamodule=Data(preprocess="standardize"))
        one.save_checkpoint(tmp_path / "one.ckpt")
        with pytest.raises(ValueError, match=r"made with preprocess=.*MeanSubtraction"):
            trainer(tmp_path).fit(
                module(), datamodule=Data(preprocess="center"), ckpt_path=tmp_path / "one.ckpt"
            )


def test_checkpoints_leave_out_objects_of_save_hyperparameters(tmp_path: Path) -> None:
    class Saved(Data):
        def __init__(self, size: int = 3, **practices: Any) -> None:
            super().__init__(**practices)
            self.save_hyperparameters()

    one, data = trainer(tmp_path), Saved(4, preprocess=Standardize("feature"))
    assert dict(data.hparams) == {"size": 4}
    one.fit(Net(), datamodule=data)
    one.save_checkpoint(tmp_path / "one.ckpt")
    assert dict(Saved(preprocess="center").hparams) == {"size": 3, "preprocess": "center"}
    torch.load(tmp_path / "one.ckpt", weights_only=True)
    # Loaded without the layer, it has the checkpoint's.
    loaded = Saved.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert loaded.preprocessing is not None
    assert data.preprocessing is not None
    assert loaded.preprocessing.is_like(data.preprocessing)
    assert loaded.preprocessing.is_fitted


def fit_on_ranks(path: Path, count: int) -> tuple[dict[str, Tensor], int, Tensor]:
    data, net = Data(count, preprocess="standardize"), Keeping()
    one = trainer(path, devices=2, strategy="ddp", max_epochs=1)
    one.fit(net, datamodule=data)
    one.save_checkpoint(path / "ranks.ckpt")
    again = Data(count, preprocess="standardize")
    trainer(path, devices=2, strategy="ddp").fit(
        Keeping(), datamodule=again, ckpt_path=path / "ranks.ckpt"
    )
    assert data.preprocessing is not None
    state = data.preprocessing.layers[0].state_dict()
    return state, int(again.train.reads.sum()), net.net.weight.detach()


def test_ranks_read_their_share_once_and_agree(tmp_path: Path) -> None:
    count = 27  # DistributedSampler pads it to 28
    first, second = run(fit_on_ranks, [(tmp_path, count)] * 2)
    expected = Standardize().fit(samples(count, 1)[0]).state_dict()
    for name, value in expected.items():
        assert torch.equal(first[0][name], second[0][name])
        torch.testing.assert_close(first[0][name], value)
    assert first[1] == second[1] == 12  # of the resumed epoch, which drops the last
    assert torch.equal(first[2], second[2])
