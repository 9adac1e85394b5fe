"""Fits on scripted losses, small enough to make many of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping

FILTERS = [
    # A resumed fit needn't save again.
    pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint"),
    # Several fits of a test share a folder on purpose.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # The statistics don't matter to tests that save and resume averages.
    pytest.mark.filterwarnings("ignore:.*recomputes the running statistics of batch norms only"),
]

STEPS = 4  # an epoch
WEIGHTS = "early_stopping_weights"
STATE = "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"
DIP = (3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)  # best after epoch 1, that is after 8 steps

State = dict[str, Tensor]


def state_of(module: nn.Module) -> State:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name].cpu()) for name in a)


class Scripted(LightningModule):
    """Weights and running statistics change at each step; the monitored value is a given list's."""

    def __init__(self, values: Sequence[float] = DIP, every: int = STEPS, width: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.values = values
        self.every = every
        self.seen: dict[int, State] = {}  # by step, at each validation

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    @override
    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self.log("val_loss", -1e9)  # would be the best of all
            return
        self.seen[self.trainer.global_step] = state_of(self)
        self.log("val_loss", self.value())

    def value(self) -> float:
        return self.values[self.trainer.global_step // self.every - 1]

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loaders() -> tuple[DataLoader[Tensor], DataLoader[Tensor]]:
    rows = list(torch.randn(2 * STEPS, 2, generator=torch.Generator().manual_seed(1)))
    return DataLoader(rows, batch_size=2), DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


class Stateful(DataLoader[Tensor]):
    """A loader that goes on in mid-epoch when a fit is resumed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given = 0  # batches, of this epoch

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        first, self.given = self.given % len(self), 0
        for self.given, batch in enumerate(super().__iter__(), 1):
            if self.given > first:
                yield batch
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 8}
    return Trainer(
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **defaults | options,
    )


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(module, *loaders(), ckpt_path=resume)
    return trainer


def saves(folder: Path, **options: Any) -> ModelCheckpoint:
    """Save each check's checkpoint as ``step=N.ckpt``."""
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, **options)


def copy_in(checkpoint: dict[str, Any], kept: Any) -> State:
    """Return a copy of the weights in a checkpoint, which may be its ``state_dict``."""
    found: State = checkpoint["state_dict"] if kept == "state_dict" else kept
    return found


def verdict(stopping: EarlyStopping) -> tuple[object, ...]:
    score = stopping.best_score.item()
    return stopping.best_epoch, stopping.best_step, score, stopping.wait_count


class At(Callback):
    """Do something when a step is about to start."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    @override
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.action(trainer)


def stop(trainer: Trainer) -> None:
    trainer.should_stop = True


def interrupt(trainer: Trainer) -> None:
    raise KeyboardInterrupt


def fail(trainer: Trainer) -> None:
    raise ValueError("a user's mistake")
