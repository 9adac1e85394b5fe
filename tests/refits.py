"""Small fits for tests of several fits with one callback or module, and their whole outcome."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

STEPS = 3  # an epoch


FAILURES = {"failed": ValueError("a mistake"), "interrupted": KeyboardInterrupt()}


class Backbone(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 4)
        )


class Net(LightningModule):
    """A module with batch norm, dropout, a backbone and a head."""

    momentum = 0.9
    error: BaseException | None = None  # raised in the first step of the second epoch

    def __init__(self, **practices: Any) -> None:
        super().__init__(**practices)
        torch.manual_seed(0)
        self.backbone = Backbone()
        self.head = nn.Linear(4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x[:, :3]))
        return out

    def _loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = (self(batch) - batch[:, 3:]).square().mean()
        return loss

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.error is not None and self.trainer.global_step == STEPS:
            raise self.error
        loss = self._loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    @override
    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self._loss(batch)

    @override
    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.current_epoch)  # so that a later epoch has the same dropout

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=self.momentum)


class Plain(Net):
    """Its optimizer has no state, so a further fit of the same Trainer can continue exactly."""

    momentum = 0.0


class Notes(Logger):
    """A logger that keeps all values."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    @property
    @override
    def name(self) -> str:
        return "notes"

    @property
    @override
    def version(self) -> int:
        return 0

    @override
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def data(kind: str) -> DataLoader[Tensor]:
    """Return a loader of ``STEPS`` batches; the targets of ``"easy"`` are smaller than others."""
    generator = torch.Generator().manual_seed(len(kind))
    rows = torch.randn(4 * STEPS, 4, generator=generator)
    rows[:, 3] *= {"easy": 0.1, "other": 3.0}[kind]
    return DataLoader(list(rows), batch_size=4)  # type: ignore[arg-type]


def trainer_of(callbacks: list[Callback], folder: Path, epochs: int = 2, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "logger": Notes(),
        "enable_checkpointing": any(isinstance(one, Checkpoint) for one in callbacks),
    }
    return Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings | options,
    )


def fit(
    module: LightningModule, callbacks: list[Callback], kind: str, folder: Path, **options: Any
) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = trainer_of(callbacks, folder, **options)
    trainer.fit(module, data(kind), data(kind))
    return trainer


def outcome(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return all that a fit has left: weights, logged values, and what a checkpoint would hold."""
    logger = trainer.logger
    assert isinstance(logger, Notes)
    return {
        "weights": dict(module.state_dict()),
        "logged": logger.lines,
        "checkpoint": trainer._checkpoint_connector.dump_checkpoint(weights_only=False),
        "rates": [group["lr"] for o in trainer.optimizers for group in o.param_groups],
        "flags": [(p.requires_grad, p.grad is None) for p in module.parameters()],
        "modes": [part.training for part in module.modules()],
    }


def differences(a: Any, b: Any, replaced: Mapping[str, str], at: str = "") -> list[str]:
    """Return where two nested values differ by a bit.

    Args:
        a: One value.
        b: The other value.
        replaced: Parts of strings in ``a``, each with the part of a string in ``b``.
        at: The place of the values, for the result.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        is_same = a.dtype == b.dtype and torch.equal(a.nan_to_num(1e30), b.nan_to_num(1e30))
        return [] if is_same else [f"{at}: {a} != {b}"]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = {_replaced(key, replaced): key for key in a}
        if keys.keys() != b.keys():
            return [f"{at}: keys {list(keys)} != {list(b)}"]
        pairs = [(a[key], b[new], f"{at}/{new}") for new, key in keys.items()]
    elif isinstance(a, Sequence) and not isinstance(a, str) and type(a) is type(b):
        if len(a) != len(b):
            return [f"{at}: {len(a)} items != {len(b)}"]
        pairs = [(one, other, f"{at}/{i}") for i, (one, other) in enumerate(zip(a, b, strict=True))]
    else:
        a = _replaced(a, replaced)
        is_nan = isinstance(a, float) and isinstance(b, float) and a != a and b != b
        return [] if is_nan or (type(a), a) == (type(b), b) else [f"{at}: {a!r} != {b!r}"]
    return [
        text for one, other, place in pairs for text in differences(one, other, replaced, place)
    ]


def _replaced(value: Any, parts: Mapping[str, str]) -> Any:
    for old, new in parts.items():
        value = value.replace(old, new) if isinstance(value, str) else value
    return value
