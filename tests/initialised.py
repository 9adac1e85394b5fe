"""A small module that notes the weights with which a fit begins, and what initialisation draws."""

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.init import initialize


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.SELU(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 1)
        self.begins_with: dict[str, Tensor] = {}

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))  # type: ignore[no-any-return]

    @override
    def on_train_start(self) -> None:
        self.begins_with = whole(self)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()  # type: ignore[no-any-return]

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch)

    test_step = validation_step

    @override
    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def whole(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in module.state_dict().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def data() -> DataLoader[Tensor]:
    x: Any = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(x, batch_size=4)


def trainer(**kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, **quiet, **kwargs}
    return Trainer(**{"enable_checkpointing": False, **options})


def fit(module: LightningModule, ckpt_path: Any = None, **kwargs: Any) -> Trainer:
    torch.manual_seed(5)
    done = trainer(**kwargs)
    done.fit(module, data(), data(), ckpt_path=ckpt_path)
    return done


def drawn(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Return the weights that ``initialize`` gives to a copy at the start of ``fit``."""
    twin = copy.deepcopy(module)
    torch.manual_seed(5)
    initialize(twin, *args, **kwargs, generator=next_generator())
    return whole(twin)


def next_generator() -> torch.Generator:
    """Return the generator that a fit draws the weights from if it starts now."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
