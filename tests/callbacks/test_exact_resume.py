"""A fit that is resumed in mid-epoch, against the one that was interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    WeightedRandomSampler,
)
from typing_extensions import override

from tests.callbacks.resuming import ROWS, Fit, Noisy, Rows, SaveAt, fit, resumed
from tests.callbacks.scripted import FILTERS, At, same, stop

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


def two(rows: Rows, first: Any = None, second: Any = None, workers: int = 0) -> dict[str, Any]:
    """The longer loader has 4 batches, and the shorter one begins anew within an epoch."""
    return {
        "long": DataLoader(rows, 4, shuffle=True, generator=first),
        "short": DataLoader(rows, 5, shuffle=True, generator=second, num_workers=workers),
    }


def shared(rows: Rows, workers: int = 0) -> dict[str, Any]:
    one = generator()
    return two(rows, one, one, workers)


TWO: dict[str, Callable[[Rows], dict[str, Any]]] = {
    "global": two,
    "one": lambda rows: two(rows, None, generator()),
    "shared": lambda rows: shared(rows),
    "workers": lambda rows: shared(rows, 1),
}


@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size", "min_size"])
@pytest.mark.parametrize(
    ("name", "step"),
    [*((name, step) for name in ("global", "one", "shared") for step in (2, 7, 8)), ("workers", 7)],
)
def test_several_loaders(tmp_path: Path, mode: Any, name: str, step: int) -> None:
    make = lambda rows: CombinedLoader(TWO[name](rows), mode)  # noqa: E731
    whole, rest = resumed(tmp_path, make, step, max_epochs=3)
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


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_validation_start"])
def test_one_loader_for_training_and_validation(tmp_path: Path, hook: str, workers: int) -> None:
    rows = Rows()

    def both() -> DataLoader[Any]:
        return DataLoader(rows, 4, shuffle=True, generator=generator(), num_workers=workers)

    options: dict[str, Any] = {"val": True, "val_check_interval": 0.5, "max_epochs": 3}
    save = SaveAt(tmp_path / "a", 5 if hook == "on_train_batch_end" else 6, hook)

    def fitted(*callbacks: SaveAt, resume: Path | None = None) -> Fit:
        loader = both()
        return fit(lambda _: loader, *callbacks, val_loader=loader, resume=resume, **options)

    whole, rest = fitted(save), fitted(resume=tmp_path / "a")
    assert rest.batches == whole.batches[len(whole.batches) - len(rest.batches) :]
    assert same(rest.weights, whole.weights)


@pytest.mark.parametrize("step", [5, 6])  # in the middle of epoch 1, and at its end
def test_scheduled_accumulation(tmp_path: Path, step: int) -> None:
    scheduling = {0: 1, 1: 2}
    save = SaveAt(tmp_path / "a", step)
    whole, rest = (
        fit(LOADERS["shuffled"], *more, GradientAccumulationScheduler(dict(scheduling)),
            resume=path, max_epochs=3)
        for more, path in (([save], None), ([], tmp_path / "a"))
    )  # fmt: skip
    assert rest.batches == whole.batches[len(whole.batches) - len(rest.batches) :]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress


class Lengths(Callback):
    """Notes the number of batches of a combined loader at the start of each epoch."""

    def __init__(self, loader: CombinedLoader) -> None:
        self.loader = loader
        self.seen: list[int] = []

    @override
    def on_train_epoch_start(self, *_: Any) -> None:
        self.seen.append(len(self.loader))


@pytest.mark.parametrize("exact", [True, False])
def test_the_users_combined_loader_has_its_length_in_hooks(exact: bool) -> None:
    loader = CombinedLoader(two(Rows()), "min_size")
    lengths = Lengths(loader)
    fit(lambda _: loader, lengths, exact=exact)
    assert lengths.seen == [3, 3]


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("saved", ["on_train_epoch_end", "after the fit"])
def test_a_fit_that_a_callback_stopped_goes_on(tmp_path: Path, step: int, saved: str) -> None:
    make, path = LOADERS["shuffled"], tmp_path / "stopped.ckpt"
    is_after = saved == "after the fit"
    save = [] if is_after else [SaveAt(path, step, saved)]
    fit(make, At(step - 1, stop), *save, saved=path if is_after else None, val=True)
    whole, rest = (fit(make, resume=resume, val=True) for resume in (None, path))
    assert rest.batches == whole.batches[step:]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress


@pytest.mark.parametrize("step", [2, 5])
def test_the_batches_of_overfit_batches(tmp_path: Path, step: int) -> None:
    options: dict[str, Any] = {"overfit_batches": 3, "max_epochs": 3, "val": True}
    whole, rest = resumed(tmp_path, LOADERS["in order"], step, **options)
    assert len(whole.batches) == 9
    assert rest.batches == whole.batches[step:]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress


class Pooling(Noisy):
    """Draws the regions of its fractional max pooling for each batch."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.FractionalMaxPool2d(2, output_ratio=0.7)
        image = nn.Unflatten(1, (1, 8, 8))
        self.net = nn.Sequential(nn.Linear(4, 64), image, pool, nn.Flatten(), nn.Linear(25, 1))


def test_the_regions_of_fractional_max_pooling(tmp_path: Path) -> None:
    path = tmp_path / "2.ckpt"
    whole = fit(LOADERS["shuffled"], SaveAt(path, 2), module=Pooling())
    rest = fit(LOADERS["shuffled"], resume=path, module=Pooling())
    assert same(rest.weights, whole.weights)
