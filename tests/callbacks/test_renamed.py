"""Fits that go on after a layer was renamed: as they would have without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from lightning_practices.callbacks import BestCheckpoint, EarlyStopping, WeightAveraging
from tests import processes
from tests.callbacks.renaming import (
    FILES,
    HOLDERS,
    HOOKS,
    InPlace,
    MadeAnew,
    Net,
    Renamed,
    Replaced,
    assert_same,
    data,
    fit,
    fit_with_checkpoints,
    new_name,
    results,
    unfreezing,
)
from tests.callbacks.scripted import FILTERS, State, same, saves, state_of, trainer_of

pytestmark = FILTERS


@pytest.fixture(scope="module", params=HOLDERS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[State]]:
    """Return a fit that nothing interrupts, with its checkpoints."""
    folder = tmp_path_factory.mktemp("fit")
    return request.param, folder, fit_with_checkpoints(request.param, folder)


@pytest.mark.parametrize("kind", HOOKS)
def test_a_resumed_fit_is_that_without_the_rename(
    whole: tuple[str, Path, list[State]], kind: type[Renamed]
) -> None:
    name, folder, expected = whole
    for file in (*FILES, "after.ckpt") if kind is InPlace else FILES[2:3]:
        holders = HOLDERS[name]("trunk")
        fit(module := kind(), *holders, resume=folder / file)
        assert_same(results(module, holders), expected)


def test_a_fit_that_goes_on_after_its_end(tmp_path: Path) -> None:
    trainer = fit(Net(), EarlyStopping("val_loss", patience=9), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    fit(expected := Net(), EarlyStopping("val_loss", patience=9), resume=tmp_path / "after.ckpt")
    fit(module := InPlace(), EarlyStopping("val_loss", patience=9), resume=tmp_path / "after.ckpt")
    assert_same(results(module, []), results(expected, []))


def test_the_weights_of_the_fit_itself_are_not_changed_by_the_hook(tmp_path: Path) -> None:
    callbacks = [WeightAveraging(decay=0.6), EarlyStopping("val_loss", patience=9)]
    fit(Net(), *callbacks, saves(tmp_path, every_n_train_steps=10))
    saved = torch.load(tmp_path / "step=10.ckpt", weights_only=True)["weight_averaging"]["current"]
    seen: list[State] = []

    class Look(MadeAnew):
        @override
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(state_of(self))

    callbacks = [EarlyStopping("val_loss", patience=9), WeightAveraging(decay=0.6)]
    fit(Look(), *callbacks, resume=tmp_path / "step=10.ckpt")
    assert same(seen[0], {new_name(name): value for name, value in saved.items()})


def test_the_rates_of_renamed_blocks_have_their_new_names(tmp_path: Path) -> None:
    fit(Net(), unfreezing("body"), saves(tmp_path, every_n_train_steps=14))
    trainer = fit(InPlace(), unfreezing("trunk"), resume=tmp_path / "step=14.ckpt")
    (optimizer,) = trainer.optimizers
    assert [group["name"] for group in optimizer.param_groups] == ["head", "trunk"]
    assert [group["block"] for group in optimizer.param_groups] == ["head", "trunk"]


def test_best_checkpoints_and_their_kept_weights(tmp_path: Path) -> None:
    best = BestCheckpoint("val_loss", dirpath=tmp_path)
    stopping = EarlyStopping("val_loss", patience=9)
    fit(module := Net(), best, stopping)
    again = EarlyStopping("val_loss", patience=9)
    trainer = trainer_of(BestCheckpoint("val_loss", dirpath=tmp_path), again)
    loaded = InPlace()
    trainer.test(loaded, data()[1], ckpt_path=best.best_model_path, verbose=False)
    assert_same(results(loaded, []), results(module, []))
    again.restore(loaded)
    assert_same(results(loaded, []), results(module, []))


class Partial(Net):
    """Saves no frozen parameter, and so doesn't load one."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        del checkpoint["state_dict"]["scale"]


@pytest.mark.parametrize("step", [8, 10])
@pytest.mark.filterwarnings("ignore:the names of .* missing scale. as strict_loading is False")
@pytest.mark.parametrize("name", ["early stopping", "ema", "both"])
def test_a_state_dict_without_frozen_parameters(name: str, step: int, tmp_path: Path) -> None:
    save = saves(tmp_path) if step == 8 else saves(tmp_path, every_n_train_steps=2)
    fit(expected := Partial(), *HOLDERS[name](""), save)
    fit(module := Partial(), *HOLDERS[name](""), resume=tmp_path / f"step={step}.ckpt")
    assert_same(results(module, []), results(expected, []))


class Shifting(Net):
    """Changes tensors in place, once for each copy."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["head.bias"].add_(1.0)


@pytest.mark.parametrize("step", [8, 16])
def test_a_hook_that_changes_tensors_changes_each_once(step: int, tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    fit(Net(), stopping, saves(tmp_path))
    best = torch.load(tmp_path / "step=8.ckpt", weights_only=True)["state_dict"]
    trainer = trainer_of(again := EarlyStopping("val_loss", patience=9))
    module = Shifting()
    trainer.validate(module, data()[1], ckpt_path=tmp_path / f"step={step}.ckpt", verbose=False)
    again.restore(module)
    assert same(state_of(module), best | {"head.bias": best["head.bias"] + 1.0})


# On two ranks.


def resume_on_two_ranks(folder: Path) -> list[State]:
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    fit(Net(), *HOLDERS["both"](""), saves(folder), **options)
    resume = folder / "step=6.ckpt"
    fit(expected := Net(), *HOLDERS["both"](""), resume=resume, **options)
    fit(module := Replaced(), *HOLDERS["both"](""), resume=resume, **options)
    return results(expected, []) + results(module, [])


def test_on_two_ranks(tmp_path: Path) -> None:
    for expected, actual in processes.run(resume_on_two_ranks, [(tmp_path,)] * 2):
        assert same(actual, expected)
