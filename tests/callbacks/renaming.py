"""Fits of modules that have renamed a layer since their checkpoints were saved."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import (
    EarlyStopping,
    ProgressiveUnfreezing,
    SnapshotEnsemble,
    WeightAveraging,
)
from tests.callbacks.scripted import State, Stateful, same, saves, state_of, trainer_of

# A checkpoint from before the validation of an epoch would leave that out, so 8 is one of epochs.
FILES = ("steps/step=6.ckpt", "epochs/step=8.ckpt", "steps/step=10.ckpt", "steps/step=14.ckpt")

EPOCHS, STEPS = 5, 4
DIP = (3.0, 1.0, 2.0, 2.0, 2.0)  # best after 8 steps
ROWS = list(torch.randn(2 * STEPS, 3, generator=torch.Generator().manual_seed(1)))
FLAT = {"plateau": {"monitor": "val_loss", "patience": 1}}


class Net(LightningModule):
    """A trunk and a head, a frozen scale, and a buffer that isn't averaged."""

    trunk_name = "body"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module(self.trunk_name, self.make_trunk())
        self.head = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("count", torch.zeros(1))

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    @override
    def forward(self, rows: Tensor) -> Tensor:
        self.count: Tensor
        self.count += self.training
        hidden: Tensor = self.get_submodule(self.trunk_name)(rows).tanh()
        return self.head(hidden) * self.scale  # type: ignore[no-any-return]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss + 1e-6 * torch.rand(())  # the random states of a fit count too

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        value = DIP[max(self.trainer.global_step // STEPS - 1, 0)]
        self.log("val_loss", -1e9 if self.trainer.sanity_checking else value)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["layout"] = 1

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Renamed(Net):
    """Has the trunk under another name, and doesn't load earlier checkpoints."""

    trunk_name = "trunk"


def new_name(name: str) -> str:
    return name.replace("body.", "trunk.")


class InPlace(Renamed):
    """Renames entry by entry, and raises where an entry has its new name already."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            state[f"trunk.{name}"] = state.pop(f"body.{name}")
        for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            state[f"trunk.{name}"] = state.pop(f"body.{name}")
        assert state["count"] is not None
        assert state["scale"] is not None


class Replaced(Renamed):
    """Empties the old dict, and makes another."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {new_name(name): state.pop(name) for name in list(state)}


class ByVersion(Renamed):
    """Asks another entry of the checkpoint whether to rename."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["layout"] == 1:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {new_name(name): value for name, value in state.items()}


class MadeAnew(InPlace):
    """Makes its layers in the shapes of the checkpoint, with random weights."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        assert len(checkpoint["state_dict"]["trunk.0.weight"]) == 4
        self.trunk = self.make_trunk()
        self.head.reset_parameters()


class Reordered(InPlace):
    """Changes optimizer states too, which must happen once."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for state in checkpoint["optimizer_states"]:
            state["state"] = {place: state["state"].pop(place) for place in list(state["state"])}


HOOKS = [InPlace, Replaced, ByVersion, MadeAnew, Reordered]


def phases(trunk: str) -> list[dict[str, Any]]:
    return [
        {"blocks": ["head"], "until": FLAT, "restore_best": True},
        {"blocks": [trunk]},
    ]


def unfreezing(trunk: str) -> ProgressiveUnfreezing:
    return ProgressiveUnfreezing(phases(trunk), by=[["head"], [trunk, "scale"]])


HOLDERS: dict[str, Callable[[str], Sequence[Callback]]] = {
    "ema": lambda _: [WeightAveraging(decay=0.6)],
    "swa": lambda _: [WeightAveraging("swa", start=2, interval="step", frequency=3)],
    "early stopping": lambda _: [EarlyStopping("val_loss", patience=2)],
    "both": lambda _: [EarlyStopping("val_loss", patience=9), WeightAveraging(decay=0.6)],
    "unfreezing": lambda trunk: [unfreezing(trunk)],
    "snapshots": lambda _: [SnapshotEnsemble(5)],
}


def data() -> tuple[Stateful, Stateful]:
    return Stateful(ROWS, batch_size=2), Stateful(ROWS, batch_size=8)


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": EPOCHS} | options)
    torch.manual_seed(1)
    trainer.fit(module, *data(), ckpt_path=resume, weights_only=True if resume else None)
    return trainer


def results(module: LightningModule, holders: Sequence[Callback]) -> list[State]:
    """Return the weights after a fit, those of snapshots too, by the new names."""
    states = [state_of(module)]
    for holder in holders:
        if isinstance(holder, SnapshotEnsemble):
            states += map(state_of, holder.members(module))
    return [{new_name(name): value for name, value in state.items()} for state in states]


def assert_same(actual: list[State], expected: list[State]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert same(one, other)


def fit_with_checkpoints(name: str, folder: Path) -> list[State]:
    """Fit a module that isn't renamed, without interruption; return what it ends with."""
    holders = HOLDERS[name]("body")
    module = Net()
    steps = saves(folder / "steps", every_n_train_steps=2)
    trainer = fit(module, *holders, steps, saves(folder / "epochs"))
    trainer.save_checkpoint(folder / "after.ckpt")
    return results(module, holders)
