"""Fits in phases, of a network of three blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing
from tests.callbacks.scripted import trainer_of

STEPS = 4  # an epoch
BLOCKS = ["head", "body", "stem"]

HEAD: dict[str, Any] = {"blocks": ["head"], "until": {"epoch": 1}}
BODY: dict[str, Any] = {"blocks": ["body"], "until": {"epoch": 1}}
STEM: dict[str, Any] = {"blocks": ["stem"]}
SCHEDULE = [HEAD, BODY, STEM]


class Net(LightningModule):
    """Logs as ``val_loss`` the values of a script, at one validation after the other."""

    def __init__(self, script: Sequence[float] = (), p: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(p))
        self.head = nn.Linear(4, 2)
        self.script = script
        self.rates: list[dict[str, float]] = []  # by step
        self.trained: list[str] = []  # by batch

    @override
    def forward(self, rows: Tensor) -> Tensor:
        hidden: Tensor = self.body(self.stem(rows).relu())
        return self.head(hidden.relu())  # type: ignore[no-any-return]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trained.append(trained(self))
        loss: Tensor = (self(batch) - batch[:, :2]).square().mean()
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if self.trainer.sanity_checking:
            self.log("val_loss", -1e9)  # would be the best of all
        elif self.script:
            done = self.trainer.global_step // STEPS - 1
            self.log("val_loss", self.script[min(done, len(self.script) - 1)])

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def trained(module: LightningModule) -> str:
    """Return the initials of the blocks of which all is trained: "h", "hb", "hbs"."""
    flags = {name: {p.requires_grad for p in getattr(module, name).parameters()} for name in BLOCKS}
    return "".join(name[0] for name in BLOCKS if flags[name] == {True})


def runs(letters: Sequence[str]) -> list[tuple[str, int]]:
    """Return how often each item follows itself."""
    found: list[tuple[str, int]] = []
    for item in letters:
        again = found and found[-1][0] == item
        found[-1:] = [(item, found[-1][1] + 1)] if again else [*found[-1:], (item, 1)]
    return found


def rows(count: int = 2 * STEPS) -> list[Tensor]:
    return list(torch.randn(count, 3, generator=torch.Generator().manual_seed(1)))


def loader(size: int = 2) -> DataLoader[Tensor]:
    return DataLoader(rows(), batch_size=size)  # type: ignore[arg-type]


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": 3} | options)
    trainer.fit(module, loader(), loader(8), ckpt_path=resume)
    return trainer


def unfreezing(*phases: Mapping[str, Any], **options: Any) -> ProgressiveUnfreezing:
    return ProgressiveUnfreezing(list(phases) or SCHEDULE, **options)


class Each(Callback):
    """Do something at a hook, each time."""

    def __init__(self, hook: str, action: Any) -> None:
        setattr(self, hook, lambda trainer, module, *_: action(trainer, module))
