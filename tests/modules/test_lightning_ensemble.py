"""An ensemble as one LightningModule: tested, predicted with, saved and loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.callbacks import SnapshotEnsemble
from lightning_practices.mixins import EarlyStoppingMixin
from lightning_practices.modules import LightningEnsemble
from tests.callbacks.scripted import FILTERS, same, state_of, trainer_of

pytestmark = FILTERS

COUNT, BATCH = 21, 8  # the last batch is smaller


class Net(LightningModule):
    """Its checkpoint says how to build it."""

    def __init__(self, width: int = 6, outputs: int = 3, *, activation: str = "relu") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width),
            nn.ReLU() if activation == "relu" else nn.Tanh(),
            nn.Dropout(0.5), nn.Linear(width, outputs),
        )  # fmt: skip

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2)


class Silent(Net):
    """Its checkpoint doesn't: an argument that isn't noted decides."""

    def __init__(self, activation: str = "relu") -> None:
        super().__init__(activation=activation)
        self.save_hyperparameters({"width": 6, "outputs": 3, "seed": 1})
        del self.hparams["activation"]


class Stopping(EarlyStoppingMixin, Net):
    def __init__(self, more: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()


class Fewer(Net):
    """Its checkpoint notes an argument, ``outputs``, that it doesn't take itself."""

    def __init__(self, width: int = 6, activation: str = "relu") -> None:
        super().__init__(width, activation=activation)


class Outer:
    class Inner(Net):
        """A class within another."""


def data(kind: type = int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, 4, generator=generator)
    return x, x.abs().argmax(1) % 3 if kind is int else x[:, :3]


def loader(y: Tensor | None = None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(data()[0], data()[1] if y is None else y), BATCH)


def trained(count: int = 3, make: Any = Net, **options: Any) -> list[Any]:
    """Return modules of several weights and statistics."""
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = make(**options)
        model(3 * torch.randn(32, 4) + 1)
        models.append(model)
    return models


def result_of(module: LightningEnsemble, y: Tensor | None = None) -> dict[str, float]:
    (result,) = trainer_of().test(module, loader(y), verbose=False)
    return dict(result)


# What a Trainer does with it.


@pytest.mark.parametrize("vote", ["soft", "hard"])
def test_multiclass(vote: Any) -> None:
    models, (x, y) = trained(), data()
    result = result_of(LightningEnsemble(models, task="multiclass", vote=vote))
    each = torch.stack([model.eval()(x) for model in models]).double()
    mean = each.softmax(2).mean(0)
    votes = F.one_hot(each.argmax(2), 3).sum(0)
    said = mean if vote == "soft" else votes
    assert result["test_accuracy"] == pytest.approx((said.argmax(1) == y).double().mean().item())
    assert ("test_loss" in result) == (vote == "soft")
    if vote == "soft":
        loss = -mean[torch.arange(COUNT), y].log().mean().item()
        assert result["test_loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("vote", ["soft", "hard"])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_binary(vote: Any, outputs: Any) -> None:
    models, (x, _) = trained(outputs=2), data()
    if outputs == "probabilities":
        models = [nn.Sequential(model, nn.Sigmoid()) for model in models]
    y = (x[:, :2] > 0.3).long()
    result = result_of(LightningEnsemble(models, task="binary", vote=vote, outputs=outputs), y)
    each = torch.stack([model.eval()(x) for model in models]).double()
    p = each if outputs == "probabilities" else each.sigmoid()
    said = p.mean(0) if vote == "soft" else (p > 0.5).double().mean(0)
    assert result["test_accuracy"] == pytest.approx(((said > 0.5) == y).double().mean().item())
    assert ("test_loss" in result) == (vote == "soft")
    if vote == "soft":
        loss = F.binary_cross_entropy(said, y.double()).item()
        assert result["test_loss"] == pytest.approx(loss, rel=1e-6)


def test_regression() -> None:
    models, (x, y) = trained(), data(float)
    result = result_of(LightningEnsemble(models, task="regression"), y)
    mean = torch.stack([model.eval()(x) for model in models]).double().mean(0)
    assert result == {"test_loss": pytest.approx((mean - y).square().mean().item(), rel=1e-6)}


def test_predictions_have_a_spread() -> None:
    models, (x, _) = trained(), data()
    module = LightningEnsemble(models, task="multiclass")
    predicted: Any = trainer_of().predict(module, loader())
    assert [len(batch.mean) for batch in predicted] == [8, 8, 5]
    p = torch.stack([model.eval()(x) for model in models]).softmax(2)
    torch.testing.assert_close(torch.cat([batch.mean for batch in predicted]), p.mean(0))
    torch.testing.assert_close(torch.cat([batch.std for batch in predicted]), p.std(0))
    bare: Any = trainer_of().predict(module, DataLoader(list(x), COUNT))  # type: ignore[arg-type]
    torch.testing.assert_close(bare[0].mean, p.mean(0))
    torch.testing.assert_close(module(x), p.mean(0))


def test_a_subclass_reads_batches_of_another_kind() -> None:
    class Named(LightningEnsemble):
        @override
        def test_step(self, batch: Any, batch_idx: int) -> None:
            super().test_step((batch["image"], batch["label"]), batch_idx)

    x, y = data()
    rows = [{"image": a, "label": b} for a, b in zip(x, y, strict=True)]
    module = Named(trained(), task="multiclass")
    (result,) = trainer_of().test(module, DataLoader(rows, BATCH), verbose=False)  # type: ignore[arg-type]
    assert dict(result) == result_of(LightningEnsemble(trained(), task="multiclass"))


# One file.


@pytest.mark.parametrize("make", [Net, Stopping, Fewer, Outer.Inner])
def test_it_is_saved_and_loaded_as_one(make: Any, tmp_path: Path) -> None:
    models = [*trained(2, make, width=5), *trained(1, make, width=7, activation="tanh")]
    module = LightningEnsemble(models, task="multiclass", vote="hard", vectorize=False)
    trainer = trainer_of()
    trainer.test(module, loader(), verbose=False)
    trainer.save_checkpoint(tmp_path / "ensemble.ckpt")
    loaded = LightningEnsemble.load_from_checkpoint(tmp_path / "ensemble.ckpt", weights_only=True)
    assert same(state_of(loaded), state_of(module))
    assert repr(loaded.ensemble) == repr(module.ensemble)
    assert "vote='hard', run one by one: vectorize=False" in repr(loaded)
    assert [type(member) for member in loaded.ensemble.members] == 3 * [make]
    x, _ = data()
    assert torch.equal(loaded(x), module(x))
    assert torch.equal(copy.deepcopy(loaded)(x), module(x))
    again = trainer_of()  # a loaded one is saved again
    again.test(loaded, loader(), verbose=False)
    again.save_checkpoint(tmp_path / "again.ckpt")
    assert torch.equal(
        LightningEnsemble.load_from_checkpoint(tmp_path / "again.ckpt")(x), module(x)
    )


@pytest.mark.parametrize("make", [Silent, lambda: nn.Sequential(nn.Linear(4, 3))])
def test_members_that_a_file_does_not_describe_are_given(make: Any, tmp_path: Path) -> None:
    module = LightningEnsemble(trained(2, make), task="multiclass")
    trainer = trainer_of()
    trainer.test(module, loader(), verbose=False)
    path = tmp_path / "ensemble.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(TypeError, match=r"doesn't hold how to build.*members=\[\.\.\.\]"):
        LightningEnsemble.load_from_checkpoint(path)
    members = [make(), make()]
    loaded = LightningEnsemble.load_from_checkpoint(path, members=members, weights_only=True)
    assert torch.equal(loaded(data()[0]), module(data()[0]))


def test_a_class_that_is_not_imported_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text("raise SystemError('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("elsewhere.Net", "os.system", "torch.nn.Linear", "Net", f"{__name__}.None", ""):
        described = {"class_path": path, "init_args": {}}
        with pytest.raises(
            ValueError, match=f"of class {path!r}, which is no LightningModule that"
        ):
            LightningEnsemble([described], task="multiclass")


@pytest.mark.parametrize(
    "described",
    [
        {"class_path": 3, "init_args": {}},
        {"class_path": "Net", "init_args": 3},
        {"class_path": "Net", "init_args": {3: 3}},
        {"init_args": {}},
        {},
        {"class_path": ["x" * 10**6], "init_args": None},
    ],
)
def test_a_member_of_a_file_that_was_edited(described: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="members has to hold modules, or as a file") as caught:
        LightningEnsemble([described], task="multiclass")
    assert len(str(caught.value)) < 1000


# What it is built of.


def test_of_checkpoints(tmp_path: Path) -> None:
    paths, x = [], data()[0]
    for seed in range(3):
        torch.manual_seed(seed)
        saving = ModelCheckpoint(tmp_path / str(seed), "net")
        trainer = trainer_of(saving, max_epochs=1)
        trainer.fit(Net(activation="tanh"), loader())
        paths.append(saving.best_model_path)
    module = LightningEnsemble.from_checkpoints(Net, paths, task="multiclass", vote="soft")
    models = [Net.load_from_checkpoint(path).eval() for path in paths]
    expected = torch.stack([model(x) for model in models]).softmax(2).mean(0)
    torch.testing.assert_close(module(x), expected)
    other = LightningEnsemble.from_checkpoints(Net, paths, task="multiclass", activation="relu")
    assert isinstance(other.ensemble.members[0].net[2], nn.ReLU)  # type: ignore[index]


def test_of_snapshots(tmp_path: Path) -> None:
    net, snapshots = Net(width=9), SnapshotEnsemble(3)
    trainer_of(snapshots, max_epochs=3).fit(net, loader())
    module = LightningEnsemble(snapshots.members(net), task="multiclass")
    assert len(module.ensemble.members) == 3
    trainer = trainer_of()
    trainer.test(module, loader(), verbose=False)
    trainer.save_checkpoint(tmp_path / "ensemble.ckpt")
    loaded = LightningEnsemble.load_from_checkpoint(tmp_path / "ensemble.ckpt")
    for a, member in zip(loaded.ensemble.members, snapshots.members(net), strict=True):
        assert same(state_of(a), state_of(member))


def test_it_does_not_train() -> None:
    with pytest.raises(MisconfigurationException, match="No `training_step"):
        trainer_of(max_epochs=1).fit(LightningEnsemble(trained(), task="multiclass"), loader())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="task has to be"):
        LightningEnsemble(trained(), task="classes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"each of members has to be a .*Module, but got 'a.ckpt'"):
        LightningEnsemble(["a.ckpt"], task="multiclass")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one module"):
        LightningEnsemble([], task="multiclass")


# Members that have changed since.


class Noting(Net):
    """Saves with its weights the name of its layers."""

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert "net.0.weight" in checkpoint["state_dict"]
        checkpoint["layers"] = "net"


class Renamed(Noting):
    """Has named its layers anew, and reads its older checkpoints."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.layers = self.net
        del self.net

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["hyper_parameters"]["width"] == 6
        state, old = checkpoint["state_dict"], checkpoint["layers"]
        checkpoint["state_dict"] = {
            name.replace(f"{old}.", "layers."): state.pop(name) for name in list(state)
        }

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["layers"] = "layers"


def saved(module: LightningModule, path: Path) -> Path:
    trainer = trainer_of()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def test_members_with_renamed_layers(tmp_path: Path) -> None:
    models, (x, _) = trained(make=Noting), data()
    module = LightningEnsemble(models, task="multiclass")
    path = saved(module, tmp_path / "all.ckpt")
    for file in (path, tmp_path / "again.ckpt"):  # a loaded one is saved again, with new names
        members = [Renamed() for _ in range(3)]
        loaded = LightningEnsemble.load_from_checkpoint(file, members=members, weights_only=True)
        assert torch.equal(loaded(x), module(x))
        saved(loaded, tmp_path / "again.ckpt")
    paths = [saved(model, tmp_path / f"{n}.ckpt") for n, model in enumerate(models)]
    joined = LightningEnsemble.from_checkpoints(Renamed, paths, task="multiclass")
    assert torch.equal(joined(x), module(x))


def test_members_that_do_not_read_their_older_checkpoints(tmp_path: Path) -> None:
    path = saved(LightningEnsemble(trained(make=Net), task="multiclass"), tmp_path / "all.ckpt")
    members = [Renamed() for _ in range(3)]
    with pytest.raises(KeyError, match="layers") as caught:
        LightningEnsemble.load_from_checkpoint(path, members=members)
    assert "on_load_checkpoint of Renamed was called for a copy" in caught.value.__notes__[0]
    others = [Net(width=5) for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"size mismatch for ensemble.members.0.net.0.weight"):
        LightningEnsemble.load_from_checkpoint(path, members=others)
