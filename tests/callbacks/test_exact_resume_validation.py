"""A fit whose validation is interrupted, and resumed, against the fit without the interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import DataLoader
from typing_extensions import override

from tests.callbacks.resuming import Fit, Noisy, Rows, SaveAt, fit
from tests.callbacks.scripted import FILTERS, same

pytestmark = [
    *FILTERS,
    # Of each fit with OnExceptionCheckpoint.
    pytest.mark.filterwarnings("ignore:.*was called without a model. The last model"),
    pytest.mark.filterwarnings("ignore:.*is set, but there is no last checkpoint available"),
]

VALUES = torch.arange(20.0).reshape(5, 4) / 20  # five batches, none as another


class Values(Callback):
    """Notes the monitored value of each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    @override
    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.seen.append((trainer.global_step, trainer.callback_metrics["val_loss"].item()))


class FailIn(Callback):
    """Fail in a hook, or while a batch is loaded, in the validation after a step."""

    def __init__(self, step: int, hook: str, batch: int) -> None:
        self.step = step
        self.batch = batch
        self.trainer: Any = None
        if hook != "loading":
            setattr(self, hook, self.fail)

    @override
    def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.trainer = trainer

    def fail(self, *arguments: Any) -> None:
        index = arguments[-1] if isinstance(arguments[-1], int) else self.batch
        self.at(index)

    def at(self, index: int) -> None:
        is_due = self.trainer.validating and self.trainer.global_step == self.step
        if is_due and index == self.batch:
            raise RuntimeError("interrupted")


class FailingStep(Noisy):
    def __init__(self, failing: FailIn) -> None:
        super().__init__()
        self.failing = failing

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.failing.at(batch_idx)
        super().validation_step(batch, batch_idx)


class FailingRows(list[torch.Tensor]):
    failing: FailIn | None = None

    @override
    def __getitem__(self, index: Any) -> Any:
        if self.failing is not None and self.failing.trainer is not None:
            self.failing.at(index)
        return super().__getitem__(index)


def shuffled(rows: Rows) -> DataLoader[Any]:
    return DataLoader(rows, 4, shuffle=True)


SAVED: dict[str, Callable[[Path], tuple[Callback, Path]]] = {
    "OnExceptionCheckpoint": lambda folder: (
        OnExceptionCheckpoint(folder, "exception"),
        folder / "exception.ckpt",
    ),
    "save_on_exception": lambda folder: (
        ModelCheckpoint(folder, "saved", save_on_exception=True),
        folder / "saved.ckpt",
    ),
}
HOOKS = (
    "on_validation_start",
    "loading",
    "on_validation_batch_start",
    "validation_step",
    "on_validation_batch_end",
    "on_validation_epoch_end",
)


def interrupted(folder: Path, hook: str, step: int, saved: str, **options: Any) -> Path:
    """Fit until an exception in the validation after ``step``; return the checkpoint."""
    failing = FailIn(step, hook if hook in dir(Callback) else "loading", 3)
    rows = FailingRows(VALUES)
    module: Noisy = Noisy()
    if hook == "validation_step":
        module = FailingStep(failing)
    elif hook == "loading":
        rows.failing = failing
    save, path = SAVED[saved](folder)
    with pytest.raises(RuntimeError, match="interrupted"):
        fitted(module, rows, failing, save, **options)
    found = list(folder.glob("*.ckpt"))
    assert len(found) == 1
    return found[0] if not path.exists() else path


def fitted(module: Noisy, rows: Any, *callbacks: Callback, **options: Any) -> Fit:
    loader = DataLoader(rows, 1)
    return fit(shuffled, *callbacks, module=module, val=True, val_loader=loader, **options)


@pytest.mark.parametrize(
    ("hook", "saved", "step", "options"),
    [
        *((hook, "OnExceptionCheckpoint", 4, {}) for hook in HOOKS),
        ("validation_step", "save_on_exception", 4, {}),
        ("loading", "OnExceptionCheckpoint", 3, {"val_check_interval": 1}),
        ("validation_step", "OnExceptionCheckpoint", 6, {"val_check_interval": 2}),
        ("validation_step", "OnExceptionCheckpoint", 8, {"val_check_interval": 2}),
        ("validation_step", "OnExceptionCheckpoint", 6,
         {"val_check_interval": 3, "check_val_every_n_epoch": None}),
    ],
)  # fmt: skip
def test_an_interrupted_validation_is_run_anew(
    tmp_path: Path, hook: str, saved: str, step: int, options: dict[str, Any]
) -> None:
    options = {"max_epochs": 3, **options}
    path = interrupted(tmp_path, hook, step, saved, **options)
    values, others = Values(), Values()
    whole = fitted(Noisy(), list(VALUES), values, **options)
    rest = fitted(Noisy(), list(VALUES), others, resume=path, **options)
    assert others.seen == [pair for pair in values.seen if pair[0] >= step]
    assert rest.batches == whole.batches[len(whole.batches) - len(rest.batches) :]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_end"])
def test_a_fit_that_was_interrupted_once_resumes_as_any_other(tmp_path: Path, hook: str) -> None:
    options: dict[str, Any] = {"val_check_interval": 1, "max_epochs": 2}
    path = interrupted(tmp_path, "validation_step", 2, "OnExceptionCheckpoint", **options)
    values, others = Values(), Values()
    save = SaveAt(tmp_path / "second.ckpt", 3, hook)
    whole = fitted(Noisy(), list(VALUES), save, values, resume=path, **options)
    rest = fitted(Noisy(), list(VALUES), others, resume=tmp_path / "second.ckpt", **options)
    assert others.seen == [pair for pair in values.seen if pair[0] > 3]
    assert same(rest.weights, whole.weights)


class Epochs(Callback):
    """Notes the steps at which epochs have ended."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    @override
    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.ended.append(trainer.global_step)


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (4, {}),
        (8, {}),
        (8, {"check_val_every_n_epoch": 2}),
        (3, {"val_check_interval": 1}),
        (6, {"val_check_interval": 2}),
        (8, {"val_check_interval": 2}),
        (6, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
        (4, {"accumulate_grad_batches": 2, "max_epochs": 4}),
        (8, {"max_steps": 10}),
    ],
)
def test_the_validation_after_a_batch_that_saves_is_run(
    tmp_path: Path, step: int, options: dict[str, Any]
) -> None:
    options = options if "max_steps" in options else {"max_epochs": 3, **options}
    values, others, epochs, later = Values(), Values(), Epochs(), Epochs()
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
    whole = fitted(Noisy(), list(VALUES), save, values, epochs, **options)
    path = tmp_path / f"step={step}.ckpt"
    rest = fitted(Noisy(), list(VALUES), others, later, resume=path, **options)
    assert step in [at for at, _ in values.seen]
    assert others.seen == [pair for pair in values.seen if pair[0] >= step]
    assert later.ended == [at for at in epochs.ended if at >= step]
    assert rest.batches == whole.batches[len(whole.batches) - len(rest.batches) :]
    assert same(rest.weights, whole.weights)
    assert rest.progress == whole.progress
