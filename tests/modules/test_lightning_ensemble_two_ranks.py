"""Snapshots of a fit on two ranks, and the ensemble of them."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_practices.callbacks import SnapshotEnsemble
from lightning_practices.modules import LightningEnsemble
from tests import processes
from tests.callbacks.scripted import same, trainer_of
from tests.callbacks.snapshots import Net, Notes, fit, snapshots_of

ROWS = 21


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(2))
    return x, x[:, :2].abs().argmax(1)


def on_each_rank(folder: Path) -> dict[str, Any]:
    module, snapshots, notes = Net(), SnapshotEnsemble(2), Notes()
    trainer = fit(module, snapshots, notes, devices=2, strategy="ddp")
    trainer.save_checkpoint(folder / "all.ckpt")
    kept = snapshots_of(snapshots, module)
    ensemble = LightningEnsemble(snapshots.members(module), task="multiclass")
    tester = trainer_of(devices=2, strategy="ddp")
    loader: DataLoader[Any] = DataLoader(TensorDataset(*data()), 4)
    (tested,) = tester.test(ensemble, loader, verbose=False)
    result = {"states": notes.states, "rates": notes.rates, "snapshots": kept}
    return {**result, "tested": dict(tested)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    with redirect_stdout(StringIO()) as printed:
        found = processes.run(on_each_rank, [(folder,)] * 2)
    assert printed.getvalue().count("snapshot of step 6, cycle 1") == 1
    return found


def test_both_hold_the_same_snapshots(folder: Path, ranks: list[dict[str, Any]]) -> None:
    mean = "net.1.running_mean"
    for step in (6, 12):
        own = [rank["states"][step] for rank in ranks]
        assert not torch.equal(own[0][mean], own[1][mean])  # of the batches of each
        assert torch.equal(own[0]["net.0.weight"], own[1]["net.0.weight"])
        assert all(same(rank["snapshots"][step], own[0]) for rank in ranks)
    assert ranks[0]["rates"] == ranks[1]["rates"]
    kept = torch.load(folder / "all.ckpt", weights_only=True)["snapshot_ensemble"]
    assert same(kept[6], ranks[0]["snapshots"][6])


def test_the_ensemble_is_tested_as_on_one(ranks: list[dict[str, Any]]) -> None:
    members = [Net() for _ in range(2)]
    for member, state in zip(members, ranks[0]["snapshots"].values(), strict=True):
        member.load_state_dict(state)
    x, y = data()
    # Each rank has half of the rows, and the sampler repeats one for the odd count.
    x, y = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
    mean = torch.stack([member.eval()(x) for member in members]).double().softmax(2).mean(0)
    accuracy = (mean.argmax(1) == y).double().mean().item()
    loss = -mean[torch.arange(ROWS + 1), y].log().mean().item()
    for rank in ranks:
        assert rank["tested"]["test_accuracy"] == pytest.approx(accuracy, rel=1e-6)
        assert rank["tested"]["test_loss"] == pytest.approx(loss, rel=1e-6)
