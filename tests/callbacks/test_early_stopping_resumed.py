"""Early stopping over several fits: checkpoints, resuming, the same callback again."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_practices.callbacks import EarlyStopping
from tests.callbacks.scripted import (
    DIP,
    FILTERS,
    STATE,
    WEIGHTS,
    At,
    Scripted,
    copy_in,
    fail,
    fit,
    interrupt,
    loaders,
    same,
    saves,
    state_of,
    verdict,
)

pytestmark = FILTERS


# Checkpoints and resuming.


@pytest.mark.parametrize("at_train_epoch_end", [True, False])
def test_a_checkpoint_holds_the_verdict_of_its_check(
    tmp_path: Path, at_train_epoch_end: bool
) -> None:
    stopping = EarlyStopping("val_loss", check_on_train_epoch_end=at_train_epoch_end)
    module = Scripted()
    fit(module, stopping, saves(tmp_path, save_on_train_epoch_end=at_train_epoch_end))
    for step, best, waited in [(4, 4, 0), (8, 8, 0), (12, 8, 1), (16, 8, 2), (20, 8, 3)]:
        checkpoint = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        state = checkpoint["callbacks"][STATE]
        assert (state["best_step"], state["wait_count"]) == (best, waited)
        assert state.keys() <= {
            *LightningEarlyStopping("val_loss").state_dict(),
            "best_epoch",
            "best_step",
            "fit_steps",
        }
        kept = checkpoint[WEIGHTS][STATE]["best"]
        assert (kept == "state_dict") == (best == step)  # stored once if it is the same
        assert same(copy_in(checkpoint, kept), module.seen[best])
        assert same(checkpoint["state_dict"], module.seen[step])


@pytest.mark.parametrize("values", [DIP, (3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 0.5, 2.0)])
@pytest.mark.parametrize("at_train_epoch_end", [True, False])
@pytest.mark.parametrize("resume_at", [8, 12, 20])
def test_resuming_with_more_patience_is_as_if_never_stopped(
    tmp_path: Path, values: Sequence[float], at_train_epoch_end: bool, resume_at: int
) -> None:
    at: dict[str, Any] = {"check_on_train_epoch_end": at_train_epoch_end}
    expected, whole = Scripted(values), EarlyStopping("val_loss", patience=10, **at)
    fit(expected, whole)

    save = saves(tmp_path, save_on_train_epoch_end=at_train_epoch_end)
    fit(Scripted(values), EarlyStopping("val_loss", **at), save)
    module, resumed = Scripted(values), EarlyStopping("val_loss", patience=10, **at)
    trainer = fit(module, resumed, resume=tmp_path / f"step={resume_at}.ckpt")

    assert (trainer.current_epoch, resumed.patience) == (8, 10)
    assert (resumed.stopped_epoch, resumed.stopping_reason_message) == (0, None)
    assert verdict(resumed) == verdict(whole)
    assert same(module.state_dict(), expected.state_dict())
    assert whole.best_step is not None
    assert same(module.state_dict(), expected.seen[whole.best_step])


def test_resuming_with_the_same_patience_stops_at_the_next_check(tmp_path: Path) -> None:
    fit(Scripted(), EarlyStopping("val_loss", patience=3), saves(tmp_path))
    stopping = EarlyStopping("val_loss", patience=3)
    trainer = fit(Scripted(), stopping, resume=tmp_path / "step=20.ckpt")
    assert trainer.current_epoch == 6
    assert verdict(stopping) == (1, 8, 1.0, 4)


def test_resuming_from_a_checkpoint_saved_after_the_fit(tmp_path: Path) -> None:
    expected = Scripted()
    fit(expected, EarlyStopping("val_loss", patience=10))

    module = Scripted()
    trainer = fit(module, EarlyStopping("val_loss", patience=3))
    path = tmp_path / "after.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert same(saved["state_dict"], module.seen[8])

    module = Scripted()
    fit(module, EarlyStopping("val_loss", patience=10), resume=path)
    assert same(module.seen[32], expected.seen[32])  # went on from step 20, not from the best
    assert same(module.state_dict(), expected.seen[8])


@pytest.mark.parametrize("name", ["step=16.ckpt", "after.ckpt"])
def test_resuming_a_fit_that_is_complete(tmp_path: Path, name: str) -> None:
    module = Scripted()
    trainer = fit(module, EarlyStopping("val_loss", patience=3), saves(tmp_path), max_epochs=4)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    resumed = Scripted()
    fit(resumed, EarlyStopping("val_loss", patience=3), resume=tmp_path / name, max_epochs=4)
    assert not resumed.seen
    assert same(resumed.state_dict(), module.seen[8])


def test_an_exception_loses_nothing(tmp_path: Path) -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    with pytest.raises(ValueError, match="a user's mistake"):
        fit(module, stopping, checkpoint, At(16, fail))
    assert same(module.state_dict(), module.seen[16])
    (path,) = tmp_path.iterdir()
    saved = torch.load(path, weights_only=True)
    assert same(saved["state_dict"], module.seen[16])
    assert same(saved[WEIGHTS][STATE]["best"], module.seen[8])
    stopping.restore(module)
    assert same(module.state_dict(), module.seen[8])


def test_resuming_after_ctrl_c(tmp_path: Path) -> None:
    expected = Scripted()
    fit(expected, EarlyStopping("val_loss", patience=10))
    module = Scripted()
    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    with pytest.raises(SystemExit):
        fit(module, EarlyStopping("val_loss", patience=10), checkpoint, At(16, interrupt))
    assert same(module.state_dict(), module.seen[8])
    (path,) = tmp_path.iterdir()
    module = Scripted()
    fit(module, EarlyStopping("val_loss", patience=10), resume=path)
    assert same(module.seen[32], expected.seen[32])
    assert same(module.state_dict(), expected.seen[8])


def test_the_last_checkpoint_of_a_fit_that_saved_none_before(tmp_path: Path) -> None:
    module = Scripted()
    last = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=100)
    fit(module, EarlyStopping("val_loss", patience=3), last)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert same(saved[WEIGHTS][STATE]["last"], module.seen[20])
    assert same(copy_in(saved, saved[WEIGHTS][STATE]["best"]), module.seen[8])


def test_other_runs_from_a_checkpoint_use_its_state_dict(tmp_path: Path) -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    trainer = fit(module, stopping)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    trainer.validate(module, loaders()[1], ckpt_path=tmp_path / "after.ckpt", verbose=False)
    assert same(module.state_dict(), module.seen[8])


def test_a_checkpoint_of_lightnings_own(tmp_path: Path) -> None:
    fit(Scripted(), LightningEarlyStopping("val_loss"), saves(tmp_path))
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=5)
    with pytest.warns(UserWarning, match="holds the best val_loss, 1, but not its weights"):
        fit(module, stopping, resume=tmp_path / "step=12.ckpt")
    assert verdict(stopping) == (None, None, 1.0, 5)
    assert same(module.state_dict(), module.seen[28])


def test_lightnings_own_from_our_checkpoint(tmp_path: Path) -> None:
    fit(Scripted(), EarlyStopping("val_loss", patience=3), saves(tmp_path))
    stopping = LightningEarlyStopping("val_loss", patience=5)
    fit(Scripted(), stopping, resume=tmp_path / "step=12.ckpt")
    assert stopping.best_score == 1


# Several fits.


def test_a_second_fit_goes_on_with_the_same_count_and_weights() -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=4)
    trainer = fit(module, stopping, max_epochs=4)
    assert verdict(stopping) == (1, 8, 1.0, 2)
    trainer.fit_loop.max_epochs = 8
    trainer.fit(module, *loaders())
    assert trainer.current_epoch == 6
    assert verdict(stopping) == (1, 8, 1.0, 4)
    assert same(module.state_dict(), module.seen[8])


def test_a_second_fit_has_its_own_last_weights(tmp_path: Path) -> None:
    module, stopping = Scripted((3, 1, 2, 2, 2, 0.5, 2, 2)), EarlyStopping("val_loss", patience=9)
    trainer = fit(module, stopping, saves(tmp_path), max_epochs=4)
    trainer.fit_loop.max_epochs = 8
    trainer.fit(module, *loaders())
    saved = torch.load(tmp_path / "step=24.ckpt", weights_only=True)
    assert saved[WEIGHTS][STATE] == {"best": "state_dict"}
    assert same(saved["state_dict"], module.seen[24])


@pytest.mark.parametrize("width", [2, 3])
def test_no_weights_for_another_module(width: int) -> None:
    stopping = EarlyStopping("val_loss", patience=3)
    fit(Scripted(), stopping, max_epochs=3)
    other = Scripted(width=width)
    before = state_of(other)
    with pytest.raises(MisconfigurationException, match="best weights of another module"):
        stopping.restore(other)
    assert same(other.state_dict(), before)


def test_another_module_in_a_fit_of_the_same_trainer_begins_anew() -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    trainer = fit(Scripted((1,) * 8), stopping, max_epochs=2)
    other = Scripted((3, 3, 3, 2, 3, 3, 3, 3), width=3)
    trainer.fit_loop.max_epochs = 6
    trainer.fit(other, *loaders())
    assert verdict(stopping) == (3, 16, 2.0, 2)
    assert same(other.state_dict(), other.seen[16])


def test_it_can_be_pickled_with_what_it_holds() -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    fit(module, stopping)
    copied = pickle.loads(pickle.dumps(stopping))
    other = Scripted()
    copied.restore(other)
    assert same(other.state_dict(), module.seen[8])


def test_statistics_recalibrated_after_the_fit_stay_and_training_still_goes_on_from_the_last(
    tmp_path: Path,
) -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    trainer = fit(module, stopping)
    last = module.seen[trainer.global_step]
    norm = module.net[1]
    assert isinstance(norm.running_mean, torch.Tensor)
    norm.running_mean.fill_(7.0)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    kept = saved[WEIGHTS][STATE]
    assert same(copy_in(saved, kept["best"]), module.state_dict())
    assert same(kept["last"], last)


def test_each_trainer_decides_when_to_check() -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    fit(Scripted(), stopping, max_epochs=1)
    fit(Scripted((4, 3, 1, 2), every=2), stopping, max_epochs=2, val_check_interval=0.5)
    assert verdict(stopping) == (1, 6, 1.0, 1)  # it has checked four times
