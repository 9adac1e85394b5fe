"""Fits in which each forward notes the rates of dropout that it had."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchvision import ops
from typing_extensions import override

from lightning_practices.nn import Dropout

BATCHES = 6  # an epoch
OWN = {"net.1": 0.5, "net.2": 0.25, "net.3": 0.2}


def near(factors: list[float]) -> Any:
    """Return what equals ``factors`` but for the rounding of rates to float32."""
    return pytest.approx(factors, rel=1e-6, abs=1e-9)


class Noting(LightningModule):
    """Notes the rates of its layers at each forward: of training, and of validation."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.net: Any = network or nn.Sequential(
            nn.Linear(4, 4), Dropout(0.5), nn.Dropout(0.25), ops.StochasticDepth(0.2, "row")
        )
        self.seen: list[tuple[int, int, list[float]]] = []
        self.validated: list[list[float]] = []

    def rates(self) -> list[float]:
        layers: list[Any] = [m for m in self.modules() if hasattr(m, "p")]
        return [
            float(layer.current_rate() if isinstance(layer, Dropout) else layer.p)
            for layer in layers
        ]

    @property
    def factors(self) -> list[float]:
        """Return the factor of each forward, which is that of all layers."""
        found = []
        for _, _, rates in self.seen:
            factor = rates[0] / 0.5
            assert rates == near([factor * own for own in OWN.values()])
            found.append(factor)
        return found

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.trainer.current_epoch, self.trainer.global_step, self.rates()))
        loss: Tensor = self.net(batch).square().mean()
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.rates())
        assert torch.equal(self.net(batch), self.net[0](batch))  # dropout is off

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Manual(Noting):
    """Two optimizers, of which the second takes a step at every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers[: 1 + batch_idx % 2]:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    @override
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(2)]


class Late(Noting):
    """Is built when the fit has begun."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    @override
    def configure_model(self) -> None:
        if isinstance(self.net, nn.Identity):
            self.net = Noting().net


class Endless(IterableDataset[Tensor]):
    """Six batches, without a length."""

    @override
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(4 * BATCHES, 4))


def loader() -> DataLoader[Tensor]:
    rows = torch.randn(4 * BATCHES, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(list(rows), batch_size=4)  # type: ignore[arg-type]


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False,
    }  # fmt: skip
    return Trainer(
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **defaults | options,
    )


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(module, loader(), ckpt_path=resume)
    return trainer
