"""Fits of which each optimizer step is noted: its rates, and what it left."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from typing_extensions import override

from lightning_practices.callbacks import SnapshotEnsemble
from tests.callbacks.scripted import State, Stateful, state_of, trainer_of

BATCHES, EPOCHS = 8, 3
RATES = (0.1, 0.02)


class Net(LightningModule):
    """Two groups with rates of their own, and statistics that follow."""

    def __init__(self, tensor_rates: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        self.tensor_rates = tensor_rates

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self(batch) - batch[:, :2].sin()).square().mean()
        return loss

    def make_optimizer(self) -> Optimizer:
        rates = [torch.tensor(rate) if self.tensor_rates else rate for rate in RATES]
        groups = [
            {"params": list(self.net[i].parameters()), "lr": rate}
            for i, rate in zip((0, 3), rates, strict=True)
        ]
        return SGD(groups, lr=0.5, momentum=0.9)

    @override
    def configure_optimizers(self) -> Any:
        return self.make_optimizer()


class Manual(Net):
    """Two optimizers, of which the second takes a step at every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizers: Any = self.optimizers()
        self.manual_backward(loss)
        for optimizer in optimizers[: 1 + batch_idx % 2]:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    @override
    def configure_optimizers(self) -> Any:
        return [self.make_optimizer(), SGD(self.net[1].parameters(), lr=0.3)]


class Notes(Callback):
    """The rates of each batch, by the steps before it, and the state after each step."""

    def __init__(self) -> None:
        self.rates: list[tuple[int, list[float]]] = []
        self.states: dict[int, State] = {}

    @override
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        rates = [float(g["lr"]) for o in trainer.optimizers for g in o.param_groups]
        self.rates.append((trainer.global_step, rates))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        self.states.setdefault(trainer.global_step, state_of(pl_module))


class Saves(Callback):
    """Save a checkpoint at the end of each batch, in its turn among the callbacks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def loader() -> Stateful:
    rows = torch.randn(4 * BATCHES, 3, generator=torch.Generator().manual_seed(1))
    return Stateful(list(rows), batch_size=4)


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": EPOCHS, **options})
    trainer.fit(module, loader(), ckpt_path=resume, weights_only=True if resume else None)
    return trainer


def snapshots_of(callback: SnapshotEnsemble, module: LightningModule) -> dict[int, State]:
    members = callback.members(module)
    states = map(state_of, members)
    return dict(zip(callback.steps_taken, states, strict=True))
