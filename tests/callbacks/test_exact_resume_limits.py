"""Data and changes that ExactResume can't resume exactly, and what it leaves alone."""

import copy
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler
from typing_extensions import override

from lightning_practices.callbacks import ExactResume
from tests.callbacks.resuming import ROWS, Noisy, Rows, SaveAt, fit, resumed
from tests.callbacks.scripted import FILTERS, At, Stateful, fail, same

pytestmark = FILTERS

Make = Callable[[Rows], Any]


def shuffled(rows: Rows) -> DataLoader[Tensor]:
    return DataLoader(rows, 4, shuffle=True)


class Stream(IterableDataset[Tensor]):
    """The rows one after the other, shared out to the workers."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @override
    def __iter__(self) -> Iterator[Tensor]:
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        return (self.rows[index] for index in range(first, len(self.rows), step))


class OwnIterator(DataLoader[Tensor]):
    @override
    def __iter__(self) -> Any:
        yield from super().__iter__()


class OwnCombination(CombinedLoader):
    pass


WARNED: dict[str, tuple[Make, str]] = {
    "iterable": (lambda rows: DataLoader(Stream(rows), 4), "Stream is an IterableDataset.*give"),
    "own iterator": (lambda rows: OwnIterator(rows, 4), "OwnIterator has an iterator of its own"),
    "generator": (lambda rows: Plain(shuffled(rows)), "Plain is no DataLoader"),
    "combination": (
        lambda rows: OwnCombination(shuffled(rows), "max_size_cycle"),
        "OwnCombination combines the loaders",
    ),
    "in_order": (
        lambda rows: DataLoader(rows, 4, num_workers=2, in_order=False),
        "set in_order=True",
    ),
}


class Plain:
    """An iterable that is no loader of torch's."""

    def __init__(self, loader: DataLoader[Tensor]) -> None:
        self.batches = loader

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


@pytest.mark.parametrize("name", WARNED)
def test_a_checkpoint_in_mid_epoch_warns_of_its_data(tmp_path: Path, name: str) -> None:
    make, message = WARNED[name]
    with pytest.warns(UserWarning, match=message) as seen:
        fit(make, SaveAt(tmp_path / "a", 2), SaveAt(tmp_path / "b", 3), max_epochs=1)
    assert sum("ExactResume" in str(one.message) for one in seen) == 1


@pytest.mark.parametrize("name", ["iterable", "own iterator", "generator"])
@pytest.mark.filterwarnings("ignore:ExactResume can't tell whether")
def test_other_data_is_read_again(tmp_path: Path, name: str) -> None:
    whole, rest = resumed(tmp_path, WARNED[name][0], 6)
    order = [[row[0] for row in batch] for batch in whole.batches]
    assert [[row[0] for row in batch] for batch in rest.batches] == order[6:]


@pytest.mark.filterwarnings("ignore:ExactResume can't tell whether")
@pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__` defined")
def test_an_iterable_dataset_in_workers(tmp_path: Path) -> None:
    whole, rest = resumed(tmp_path, lambda rows: DataLoader(Stream(rows), 2, num_workers=2), 9)
    assert rest.batches == whole.batches[9:]
    assert same(rest.weights, whole.weights)


class OwnGenerators(Rows):
    """Draws from generators that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.own = {
            "torch": torch.Generator().manual_seed(3),
            "numpy": np.random.default_rng(3),
            "old": np.random.RandomState(3),
            "python": random.Random(3),
        }

    @override
    def __getitem__(self, index: int) -> Tensor:
        own: Any = self.own
        noise = torch.rand((), generator=own["torch"]).item()
        other = own["numpy"].random() + own["old"].rand()
        return torch.tensor([index, noise, other, own["python"].random()])


def own(rows: Rows, workers: int = 0) -> DataLoader[Tensor]:
    return DataLoader(OwnGenerators(), 4, shuffle=True, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_batch_start"])
def test_generators_of_a_dataset(tmp_path: Path, hook: str, workers: int) -> None:
    make = partial(own, workers=workers)
    whole, rest = resumed(tmp_path, make, 2, hook, max_epochs=1 if workers else 2)
    assert rest.batches == whole.batches[2:]
    assert same(rest.weights, whole.weights)


class Noise:
    """Adds random numbers, in a method, from a generator in ``__slots__``."""

    __slots__ = ("rng",)

    def __init__(self) -> None:
        self.rng = random.Random(7)

    def add(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows) + self.rng.random()


def add(rng: np.random.Generator, rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) + rng.random()


def adding() -> Callable[[list[Tensor]], Tensor]:
    rng = np.random.default_rng(7)
    return lambda rows: torch.stack(rows) + rng.random()


HIDDEN: dict[str, Callable[[], Any]] = {
    "a bound method, slots": lambda: Noise().add,
    "partial": lambda: partial(add, np.random.default_rng(7)),
    "closure": adding,
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("workers", [0, 1])
def test_generators_of_collate_fn(tmp_path: Path, name: str, workers: int) -> None:
    def make(rows: Rows) -> DataLoader[Tensor]:
        return DataLoader(rows, 4, True, collate_fn=HIDDEN[name](), num_workers=workers)

    whole, rest = resumed(tmp_path, make, 2, max_epochs=1 if workers else 2)
    assert rest.batches == whole.batches[2:]
    assert same(rest.weights, whole.weights)


class LateGenerator(Rows):
    """Makes its generator when the first sample is read."""

    own: torch.Generator | None = None

    @override
    def __getitem__(self, index: int) -> Tensor:
        self.own = self.own or torch.Generator().manual_seed(3)
        return torch.tensor([index, torch.rand((), generator=self.own).item(), 0, 0])


class LateSampler(Sampler[int]):
    """Makes its generator in the first epoch."""

    def __init__(self) -> None:
        self.own: torch.Generator | None = None

    def __iter__(self) -> Iterator[int]:
        self.own = self.own or torch.Generator().manual_seed(3)
        return iter(torch.randperm(ROWS, generator=self.own).tolist())

    def __len__(self) -> int:
        return ROWS


LATE: dict[str, tuple[Make, str]] = {
    "dataset": (lambda _: DataLoader(LateGenerator(), 4, shuffle=True), "dataset.own"),
    "sampler": (lambda rows: DataLoader(rows, 4, sampler=LateSampler()), "sampler.own"),
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_generators_that_are_made_late(tmp_path: Path, name: str, hook: str) -> None:
    make, place = LATE[name]
    step = 8 if hook == "on_train_epoch_end" else 6
    whole = fit(make, SaveAt(tmp_path / "a", step, hook), max_epochs=3)
    with pytest.warns(UserWarning, match=f"can't restore .* generators {place}:") as seen:
        rest = fit(make, resume=tmp_path / "a", max_epochs=3)
    assert sum("ExactResume" in str(one.message) for one in seen) == 1
    assert len(rest.batches) == len(whole.batches) - step
    if name == "dataset":  # the order is restored all the same
        order = [[row[0] for row in batch] for batch in whole.batches]
        assert [[row[0] for row in batch] for batch in rest.batches] == order[step:]


def test_a_sampler_that_makes_its_generator_in_the_first_epoch(tmp_path: Path) -> None:
    whole, rest = resumed(tmp_path, LATE["sampler"][0], 2, max_epochs=2)
    assert rest.batches == whole.batches[2:]
    assert same(rest.weights, whole.weights)


@pytest.mark.parametrize("now", [torch.Generator, None])
def test_a_generator_that_was_added_or_removed(tmp_path: Path, now: Any) -> None:
    def make(generator: torch.Generator | None) -> Make:
        return lambda rows: DataLoader(rows, 4, shuffle=True, generator=generator)

    fit(make(None if now else torch.Generator()), SaveAt(tmp_path / "a", 2))
    with pytest.warns(UserWarning, match="can't restore the random number generators generator:"):
        fit(make(now() if now else None), resume=tmp_path / "a")


def test_a_stateful_loader_restores_itself(tmp_path: Path) -> None:
    whole, rest = resumed(tmp_path, lambda rows: Stateful(rows, batch_size=4), 6)
    index = [[row[0] for row in batch] for batch in whole.batches]
    assert [[row[0] for row in batch] for batch in rest.batches] == index[6:]
    saved = torch.load(tmp_path / "6.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"given": 2}]


CHANGED: dict[str, tuple[Make, str]] = {
    "batch size": (lambda rows: DataLoader(rows, 2, shuffle=True), "batch_size: 4 .*, 2 now"),
    "workers": (
        lambda rows: DataLoader(rows, 4, shuffle=True, num_workers=2),
        "num_workers: 0 .*, 1 or more now",
    ),
    "loaders": (lambda rows: [shuffled(rows)] * 2, "saved with 1 loader, and this fit has 2:"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_loaders(tmp_path: Path, name: str) -> None:
    fit(shuffled, SaveAt(tmp_path / "a", 2), max_epochs=1)
    make, message = CHANGED[name]

    def made(rows: Rows) -> Any:
        found = make(rows)
        return dict(enumerate(found)) if isinstance(found, list) else found

    with pytest.warns(UserWarning, match=message):
        fit(made, resume=tmp_path / "a", max_epochs=1)


def test_another_number_of_ranks(tmp_path: Path) -> None:
    fit(shuffled, SaveAt(tmp_path / "a", 2), max_epochs=1)
    saved = torch.load(tmp_path / "a", weights_only=True)
    saved["callbacks"]["ExactResume"]["ranks"] *= 2
    torch.save(saved, tmp_path / "b")
    with pytest.warns(UserWarning, match="saved by 2 ranks, and this fit has 1:"):
        fit(shuffled, resume=tmp_path / "b", max_epochs=1)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_checkpoint_without_a_state(tmp_path: Path) -> None:
    fit(shuffled, SaveAt(tmp_path / "a", 2), max_epochs=1, exact=False)
    with pytest.warns(UserWarning, match="from a checkpoint that was saved without it"):
        fit(shuffled, resume=tmp_path / "a", max_epochs=1)


def test_a_checkpoint_between_batches_of_a_step(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path)
    with pytest.warns(UserWarning, match="no multiple of accumulate_grad_batches=2"):
        fit(shuffled, save, val=True, val_check_interval=3, accumulate_grad_batches=2)


def test_validation_leaves_the_random_numbers_of_training_alone() -> None:
    often, never = fit(shuffled, val=True, val_check_interval=1), fit(shuffled)
    assert often.batches == never.batches
    assert same(often.weights, never.weights)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_of_the_data_is_that_of_a_fit_without_it(workers: int) -> None:
    def make(rows: Rows) -> DataLoader[Tensor]:
        return DataLoader(rows, 4, shuffle=True, num_workers=workers)

    ours, plain = fit(make), fit(make, exact=False)
    assert [[row[0] for row in batch] for batch in ours.batches] == [
        [row[0] for row in batch] for batch in plain.batches
    ]
    if not workers:  # in workers the random numbers are others
        assert same(ours.weights, plain.weights)


class Keeps(Callback):
    """Keeps the Trainer and its loader."""

    def __init__(self) -> None:
        self.trainer: Any = None

    @override
    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.trainer = trainer


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_loaders_and_trainer_are_as_before_afterwards(ends: str) -> None:
    keeps, loader = Keeps(), DataLoader(Rows(), 4, num_workers=2, persistent_workers=True)
    before = dict(vars(loader))
    if ends == "badly":
        with pytest.raises(ValueError, match="mistake"):
            fit(lambda _: loader, keeps, At(2, fail))
    else:
        fit(lambda _: loader, keeps)
    assert vars(loader) == before
    assert keeps.trainer.train_dataloader is loader
    assert type(keeps.trainer.fit_loop._data_source).__name__ == "_DataLoaderSource"


COPIED: dict[str, Make] = {
    "shuffled": shuffled,
    "workers": lambda rows: DataLoader(rows, 4, num_workers=2, persistent_workers=True),
    "own iterator": WARNED["own iterator"][0],
}


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("ends", ["at an epoch", "within an epoch", "badly"])
def test_the_trainer_and_so_a_datamodule_can_be_copied_afterwards(name: str, ends: str) -> None:
    keeps = Keeps()
    if ends == "badly":
        with pytest.raises(ValueError, match="mistake"):
            fit(COPIED[name], keeps, At(2, fail))
    else:
        fit(COPIED[name], keeps, max_steps=2 if ends == "within an epoch" else -1)
    copied = copy.deepcopy(keeps.trainer)
    assert copied.train_dataloader.dataset is not keeps.trainer.train_dataloader.dataset
    indices = torch.cat(list(copied.train_dataloader))[:, 0]
    assert torch.equal(indices.sort().values, torch.arange(float(ROWS)))


def test_a_second_fit_of_one_callback_is_as_its_first() -> None:
    callback = ExactResume()
    fits = [fit(shuffled, callback, exact=False, module=Noisy()) for _ in range(2)]
    assert fits[0].batches == fits[1].batches
    assert same(fits[0].weights, fits[1].weights)
