"""Parts of programs whose fault is in the plan of the fit."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from tests.advisor.programs import Arguments, Task, digit_loaders, mlp

BATCHES = 22  # of an epoch of the digits


class Planned(Task):
    """A task whose ``configure_optimizers`` is a function of the module, and that logs a score."""

    def __init__(
        self,
        configure: Callable[["Planned"], Any],
        net: nn.Module | None = None,
        callbacks: tuple[Callback, ...] = (),
    ) -> None:
        super().__init__(net or mlp(64, 64, 10))
        self.configure = configure
        self.configured = callbacks

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(dim=1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return self.configure(self)

    def configure_callbacks(self) -> Any:
        return list(self.configured)


def adamw(module: Planned) -> Optimizer:
    return AdamW(module.parameters(), 1e-3)


def trainer(**options: Any) -> Trainer:
    """Return a Trainer that runs nothing and writes nothing."""
    options = {"max_epochs": 10, "enable_checkpointing": False} | options
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip


def scheduled(
    make: Callable[[Optimizer, Planned], Any], interval: str = "step", **options: Any
) -> Arguments:
    """Return a program with SGD and a schedule, and a Trainer with these options."""

    def configure(module: Planned) -> Any:
        optimizer = SGD(module.parameters(), 0.1, momentum=0.9)
        scheduler = {"scheduler": make(optimizer, module), "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return Planned(configure), digit_loaders(), trainer(**options)


def stopped(*callbacks: Callback, **options: Any) -> Arguments:
    """Return a program with callbacks of its Trainer."""
    return Planned(adamw), digit_loaders(), trainer(callbacks=list(callbacks), **options)


def steps_of_fit(module: Planned) -> int:
    return int(module.trainer.estimated_stepping_batches)


def no_trainer(program: Arguments) -> Arguments:
    return program[0], program[1]
