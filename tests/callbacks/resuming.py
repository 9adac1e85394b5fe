"""Fits whose every random number matters, saved at a step and resumed there."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_practices.callbacks import ExactResume
from tests.callbacks.scripted import State, state_of, trainer_of

ROWS = 14


class Rows(Dataset[Tensor]):
    """Rows with an index and three random numbers, one by each generator; counts its reads."""

    def __init__(self, count: int = ROWS) -> None:
        self.count = count
        self.reads = torch.zeros(count, dtype=torch.int64).share_memory_()  # by workers too

    def __len__(self) -> int:
        return self.count

    @override
    def __getitem__(self, index: int) -> Tensor:
        self.reads[index] += 1
        return torch.tensor([index, torch.rand(()).item(), random.random(), np.random.rand()])


class Noisy(LightningModule):
    """Its weights depend on each bit of its batches, in their order, and of its dropout masks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 1))
        self.batches: list[list[list[float]]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, dict):  # mode="max_size" gives None for an exhausted loader
            batch = torch.cat([rows for rows in batch.values() if rows is not None])
        rows: Tensor = batch
        self.batches.append(rows.reshape(-1, 4).tolist())
        loss: Tensor = self.net(rows / ROWS).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.global_step)
        self.log("val_loss", self.net(batch).mean() + torch.rand(()))

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Save a checkpoint in a hook of a step."""

    def __init__(self, path: Path, step: int, hook: str = "on_train_batch_end") -> None:
        self.path = path
        self.step = step
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            self.step = -1  # once
            trainer.save_checkpoint(self.path)


class Fit:
    """The result of a fit."""

    def __init__(self, module: Noisy, trainer: Trainer, reads: int) -> None:
        self.weights: State = state_of(module)
        self.batches = module.batches
        self.validated = module.validated
        self.progress = (trainer.global_step, trainer.current_epoch)
        self.reads = reads


def fit(
    make: Callable[[Rows], Any],
    *callbacks: Callback,
    resume: Path | None = None,
    val: bool = False,
    module: Noisy | None = None,
    exact: bool = True,
    saved: Path | None = None,
    val_loader: Any = None,
    **options: Any,
) -> Fit:
    """Fit on the loaders that ``make`` returns; a resumed fit starts from other random states.

    A checkpoint is ``saved`` after the fit, when random numbers have been drawn outside of it.
    """
    rows, module = Rows(), module or Noisy()
    seed_everything(2 if resume else 1, verbose=False)
    given = [*([ExactResume()] if exact else []), *callbacks]
    defaults: dict[str, Any] = {} if "max_steps" in options else {"max_epochs": 2}
    limit = 1.0 if val else 0
    trainer = trainer_of(*given, **defaults | {"limit_val_batches": limit} | options)
    validation = val_loader or DataLoader(torch.ones(2, 4))  # type: ignore[arg-type]
    trainer.fit(module, make(rows), validation, ckpt_path=resume)
    if saved is not None:
        torch.rand(1)
        trainer.save_checkpoint(saved)
    return Fit(module, trainer, int(rows.reads.sum()))


def resumed(
    folder: Path,
    make: Callable[[Rows], Any],
    step: int,
    hook: str = "on_train_batch_end",
    **options: Any,
) -> tuple[Fit, Fit]:
    """Fit, saving at a step; resume from there; return both fits."""
    path = folder / f"{step}.ckpt"
    whole = fit(make, SaveAt(path, step, hook), **options)
    return whole, fit(make, resume=path, **options)
