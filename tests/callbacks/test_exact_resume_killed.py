"""Fits that are killed in mid-epoch and resumed, on one process and on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from tests.callbacks.resuming import Fit, Rows, fit
from tests.callbacks.scripted import FILTERS, At, same
from tests.processes import kill, run, run_killed

pytestmark = FILTERS

SAVED_AT, KILLED_AT = 5, 6  # an epoch has 4 steps

# Within the ranks' processes, workers would import torch and Lightning anew.
WORKERS: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}


def workers(rows: Rows) -> DataLoader[Any]:
    return DataLoader(rows, 4, shuffle=True, **WORKERS)


def killed(folder: Path) -> None:
    fit(
        workers,
        ModelCheckpoint(folder, "{step}", every_n_train_steps=SAVED_AT),
        At(KILLED_AT, kill),
    )


def test_one_process(tmp_path: Path) -> None:
    run_killed(killed, [(tmp_path,)])
    (path,) = tmp_path.iterdir()
    rest, whole = fit(workers, resume=path), fit(workers)
    assert rest.batches == whole.batches[SAVED_AT:]
    assert same(rest.weights, whole.weights)
    assert rest.reads == sum(len(batch) for batch in rest.batches)


OF_RANKS: dict[str, Any] = {"devices": 2, "strategy": "ddp", "max_epochs": 3}


def shared(users: bool, rows: Rows) -> DataLoader[Any]:
    """Two samples a rank and step; the sampler of the user or of Lightning."""
    options: dict[str, Any] = {"sampler": DistributedSampler(rows)} if users else {"shuffle": True}
    return DataLoader(rows, 2, **WORKERS, **options)


def killed_rank(folder: Path, users: bool) -> None:
    save = ModelCheckpoint(folder, "{step}", every_n_train_steps=SAVED_AT)
    fit(lambda rows: shared(users, rows), save, At(KILLED_AT, kill), **OF_RANKS)


def resumed_rank(folder: Path, users: bool) -> tuple[Fit, Fit]:
    (path,) = folder.glob("*.ckpt")
    make = lambda rows: shared(users, rows)  # noqa: E731
    return fit(make, resume=path, **OF_RANKS), fit(make, **OF_RANKS)


@pytest.mark.parametrize("users", [False, True], ids=["Lightning's sampler", "the user's sampler"])
def test_two_processes(tmp_path: Path, users: bool) -> None:
    run_killed(killed_rank, [(tmp_path, users)] * 2)
    (path,) = tmp_path.glob("*.ckpt")
    torch.load(path, weights_only=True)
    ranks = run(resumed_rank, [(tmp_path, users)] * 2)
    for rest, whole in ranks:
        assert rest.batches == whole.batches[SAVED_AT:]
        assert same(rest.weights, whole.weights)
        assert rest.reads == sum(len(batch) for batch in rest.batches)
    (first, _), (second, _) = ranks
    augmented = [{row[1] for batch in rest.batches for row in batch} for rest in (first, second)]
    assert not augmented[0] & augmented[1]  # ranks draw different numbers
