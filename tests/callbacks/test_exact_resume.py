"""A fit that is resumed in mid-epoch, against the one that was interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    WeightedRandomSampler,
)

from tests.callbacks.resuming import ROWS, Rows, SaveAt, fit, resumed
from tests.callbacks.scripted import FILTERS, same

pytestmark = FILTERS


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def with_replacement(rows: Rows) -> DataLoader[Any]:
    sampler = RandomSampler(rows, replacement=True, num_samples=40, generator=generator())
    return DataLoader(rows, 4, sampler=sampler, drop_last=True)


LOADERS: dict[str, Callable[[Rows], Any]] = {
    "in order": lambda rows: DataLoader(rows, 4),
    "shuffled": lambda rows: DataLoader(rows, 4, shuffle=True),
    "generator": lambda rows: DataLoader(rows, 4, shuffle=True, generator=generator()),
    "replacement": with_replacement,
    "weighted": lambda rows: DataLoader(rows, 4, sampler=WeightedRandomSampler([1.0] * ROWS, 16)),
    "batch sampler": lambda rows: DataLoader(
        rows, batch_sampler=BatchSampler(RandomSampler(rows), 4, True)
    ),
    "no batches": lambda rows: DataLoader(rows, None, shuffle=True),
    "workers": lambda rows: DataLoader(rows, 4, shuffle=True, num_workers=2),
    "workers, generator": lambda rows: DataLoader(
        rows, 4, shuffle=True, num_workers=2, generator=generator()
    ),
    "persistent workers": lambda rows: DataLoader(
        rows, 4, shuffle=True, num_workers=2, persistent_workers=True
    ),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("epoch", [0, 1])
def test_the_rest_is_as_without_the_interruption(tmp_path: Path, name: str, epoch: int) -> None:
    steps = {"replacement": 10, "no batches": ROWS, "batch sampler": 3}.get(name, 4)
    step = epoch * steps + 2
    whole, rest = resumed(tmp_path, LOADERS[name], step, max_epochs=epoch + 2)
    assert rest.batches == whole.batches[step:]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress
    assert rest.reads == sum(len(batch) for batch in rest.batches)  # no sample is read for nothing


def both(rows: Rows) -> dict[str, Any]:
    """The longer loader has 4 batches, and the shorter one begins anew within an epoch."""
    return {
        "long": DataLoader(rows, 4, shuffle=True),
        "short": DataLoader(rows, 5, shuffle=True, generator=generator()),
    }


@pytest.mark.parametrize(
    ("mode", "step"), [("max_size_cycle", 2), ("max_size_cycle", 7), ("min_size", 4)]
)
def test_several_loaders(tmp_path: Path, mode: Any, step: int) -> None:
    whole, rest = resumed(tmp_path, lambda rows: CombinedLoader(both(rows), mode), step)
    assert rest.batches == whole.batches[step:]
    assert same(rest.weights, whole.weights)


SETTINGS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_steps": 12},
    "accumulation": {"max_epochs": 3, "accumulate_grad_batches": 2},
    "limit": {"max_epochs": 4, "limit_train_batches": 3},
    "reloaded loaders": {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("hook", "val"),
    [
        ("on_train_batch_end", None),
        ("on_train_batch_start", None),
        ("on_validation_end", 1),
        ("on_train_epoch_end", None),
        ("on_train_epoch_end", 1),
    ],
)
def test_settings_of_the_trainer(tmp_path: Path, name: str, hook: str, val: int | None) -> None:
    options: dict[str, Any] = SETTINGS[name] | {"val": bool(val), "val_check_interval": val or 1.0}
    last = {"limit": 6, "accumulation": 4}.get(name, 8)  # of an epoch
    step = last if hook == "on_train_epoch_end" else last - 1
    whole, rest = resumed(tmp_path, LOADERS["shuffled"], step, hook, **options)
    assert rest.batches == whole.batches[len(whole.batches) - len(rest.batches) :]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress
    assert rest.validated == whole.validated[len(whole.validated) - len(rest.validated) :]


ENDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_steps, mid-epoch": ({"max_steps": 6}, {"max_steps": 12}),
    "max_steps, end of an epoch": ({"max_steps": 8}, {"max_steps": 12}),
    "max_epochs": ({"max_epochs": 2}, {"max_epochs": 3}),
    "max_steps, then max_epochs": ({"max_steps": 6}, {"max_epochs": 3}),
    "max_epochs, then max_steps": ({"max_epochs": 2}, {"max_steps": 11}),
}


WITH_WORKERS = ("max_steps, mid-epoch", "after the fit")


@pytest.mark.parametrize("name", ENDED)
@pytest.mark.parametrize("saved", ["ModelCheckpoint", "on_train_epoch_end", "after the fit"])
def test_a_fit_that_ended_goes_on(tmp_path: Path, name: str, saved: str) -> None:
    make = LOADERS["workers" if (name, saved) == WITH_WORKERS else "shuffled"]
    shorter, longer = ENDED[name]
    path = tmp_path / "last.ckpt"
    steps = 6 if "mid-epoch" in name or "then max_epochs" in name else 8
    save = {
        "ModelCheckpoint": ModelCheckpoint(tmp_path, save_last=True),
        "on_train_epoch_end": SaveAt(path, steps, "on_train_epoch_end"),
    }.get(saved)
    fit(make, *([save] if save else []), saved=None if save else path, val=True, **shorter)
    whole, rest = (fit(make, resume=resume, val=True, **longer) for resume in (None, path))
    assert rest.batches == whole.batches[steps:]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress
    assert rest.validated == whole.validated[len(whole.validated) - len(rest.validated) :]
