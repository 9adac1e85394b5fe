"""Snapshots of fits that were resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_practices.callbacks import SnapshotEnsemble
from tests.callbacks.scripted import FILTERS, same, state_of
from tests.callbacks.snapshots import (
    BATCHES,
    EPOCHS,
    Net,
    Notes,
    Saves,
    fit,
    loader,
    snapshots_of,
)

pytestmark = FILTERS
STEPS = BATCHES * EPOCHS


def assert_same_end(ours: Any, theirs: Any) -> None:
    """Both are a module, its callback and its notes."""
    assert same(state_of(ours[0]), state_of(theirs[0]))
    assert ours[1].steps_taken == theirs[1].steps_taken
    for a, b in zip(
        *(snapshots_of(end[1], end[0]).values() for end in (ours, theirs)), strict=True
    ):
        assert same(a, b)
    assert ours[2].rates == theirs[2].rates[-len(ours[2].rates) :]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a fit that was not interrupted, and checkpoints of all its steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    module, snapshots, notes = Net(), SnapshotEnsemble(5), Notes()
    torch.manual_seed(3)
    fit(module, snapshots, notes, ModelCheckpoint(folder, "{step}", every_n_train_steps=1,
        save_top_k=-1))  # fmt: skip
    return module, snapshots, notes, folder


@pytest.mark.parametrize("step", [3, 4, 5, 8, 9, 16, 19, 23])
def test_a_resumed_fit_ends_the_same(whole: Any, step: int) -> None:
    module, snapshots, notes = Net(), SnapshotEnsemble(5), Notes()
    fit(module, snapshots, notes, resume=whole[3] / f"step={step}.ckpt")
    assert notes.rates[0][0] == step
    assert_same_end((module, snapshots, notes), whole)


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_saved_before_the_snapshot_was_taken(first: bool, tmp_path: Path) -> None:
    module, snapshots, notes = Net(), SnapshotEnsemble(3), Notes()
    order = [Saves(tmp_path), snapshots, notes] if first else [snapshots, notes, Saves(tmp_path)]
    fit(module, *order)
    kept = torch.load(tmp_path / "16.ckpt", weights_only=True)["snapshot_ensemble"]
    assert list(kept) == ([8] if first else [8, 16])
    again, resumed, later = Net(), SnapshotEnsemble(3), Notes()
    fit(again, resumed, later, resume=tmp_path / "16.ckpt")
    assert_same_end((again, resumed, later), (module, snapshots, notes))


def test_a_checkpoint_of_a_fit_without_it_has_no_cycles_that_ended(tmp_path: Path) -> None:
    fit(Net(), Saves(tmp_path))
    module, snapshots = Net(), SnapshotEnsemble(3)
    fit(module, snapshots, resume=tmp_path / "16.ckpt")
    assert snapshots.steps_taken == [24]


def test_fewer_may_be_kept_from_then_on(whole: Any) -> None:
    for step in (16, 24):  # after the last one nothing is left to train
        snapshots = SnapshotEnsemble(5, keep=2)
        fit(Net(), snapshots, resume=whole[3] / f"step={step}.ckpt")
        assert snapshots.steps_taken == [19, 24]


def test_another_length_is_refused_unless_it_is_given(whole: Any) -> None:
    path = whole[3] / "step=8.ckpt"
    message = "began with 5 cycles in 24 steps, but would go on with 5 in 48: give"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Net(), SnapshotEnsemble(5), resume=path, max_epochs=6)
    with pytest.raises(MisconfigurationException, match="go on with 4 in 24"):
        fit(Net(), SnapshotEnsemble(4), resume=path)
    module, snapshots, notes = Net(), SnapshotEnsemble(5, steps=24), Notes()
    fit(module, snapshots, notes, resume=path, max_epochs=6)
    assert snapshots.steps_taken == [4, 9, 14, 19, 24, 28, 33, 38, 43, 48]
    assert same(notes.states[24], state_of(whole[0]))


def test_the_same_trainer_goes_on(whole: Any) -> None:
    module, snapshots = Net(), SnapshotEnsemble(5, steps=24)
    trainer = fit(module, snapshots)
    trainer.fit_loop.max_epochs = 2 * EPOCHS
    trainer.fit(module, loader())
    assert snapshots.steps_taken == [4, 9, 14, 19, 24, 28, 33, 38, 43, 48]
    assert same(snapshots_of(snapshots, module)[24], state_of(whole[0]))


def test_a_checkpoint_with_weights_only_has_no_snapshots(tmp_path: Path) -> None:
    trainer = fit(Net(), SnapshotEnsemble(2))
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    assert "snapshot_ensemble" not in torch.load(tmp_path / "weights.ckpt", weights_only=True)
    state = torch.load(tmp_path / "all.ckpt", weights_only=True)
    assert state["callbacks"]["SnapshotEnsemble"] == {"cycles": (24, 2), "ended": 2}
    Net.load_from_checkpoint(tmp_path / "all.ckpt", weights_only=True)
