"""Faulty and healthy programs for the advisor: how they are declared, and parts to make them of."""

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

# A module and its data, and the Trainer if a rule needs it: the arguments of `advise`.
Arguments = tuple[LightningModule, Any] | tuple[LightningModule, Any, Trainer]
Make = Callable[[], Arguments]


@dataclass(frozen=True)
class Faulty:
    """A program with a fault.

    Attributes:
        make: Makes the arguments of ``advise``.
        id: The rule that has to find the fault.
        modules: Names of modules or parameters that the finding has to hold.
        also: Other rules that may find something in this program, and rightly.
        mended: Makes the same program after the remedy.
        source: Where the fault was seen, in own words.
    """

    make: Make
    id: str
    modules: tuple[str, ...]
    also: tuple[str, ...]
    mended: Make | None
    source: str


FAULTY: dict[str, Faulty] = {}
HEALTHY: dict[str, Make] = {}


def faulty(
    id: str, *modules: str, source: str, also: Sequence[str] = (), mended: Make | None = None
) -> Callable[[Make], Make]:
    """Declare a function that makes a faulty program."""

    def declared(make: Make) -> Make:
        FAULTY[_name(make)] = Faulty(make, id, modules, tuple(also), mended, source)
        return make

    return declared


def healthy(make: Make) -> Make:
    """Declare a function that makes a healthy program: one that trains well."""
    HEALTHY[_name(make)] = make
    return make


def _name(make: Make) -> str:
    name = f"{make.__module__.rpartition('.')[2]}.{make.__name__}"
    assert name not in FAULTY | HEALTHY
    return name


def load_all() -> None:
    """Import the files that declare programs."""
    for kind in ("faulty", "healthy"):
        for info in pkgutil.iter_modules([str(Path(__file__).parent / kind)]):
            importlib.import_module(f"tests.advisor.{kind}.{info.name}")


class Task(LightningModule):
    """A network and a loss.

    Args:
        net: The network.
        loss: Function of the network's output and the target.
        optimizer: Function that makes the optimizer of the parameters; Adam by default.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        optimizer: Callable[[Any], Any] = torch.optim.Adam,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.loss = loss
        self.optimizer = optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 1797 images of digits, shape (1797, 1, 8, 8), standardised, and their classes."""
    found: Any = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    return (images - images.mean()) / images.std(), torch.tensor(found.target)


@cache
def diabetes() -> tuple[Tensor, Tensor]:
    """Return 442 rows of ten standardised features, and standardised targets of shape (442,)."""
    found: Any = load_diabetes(scaled=False)
    x, y = torch.tensor(found.data).float(), torch.tensor(found.target).float()
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def split(
    *tensors: Tensor, batch_size: int = 64, share: float = 0.8
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of a train and a validation split, drawn at random from a fixed seed."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(tensors[0])))
    cut = int(share * len(order))
    train, val = (TensorDataset(*[x[part] for x in tensors]) for part in (order[:cut], order[cut:]))
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=True),
        DataLoader(val, batch_size),
    )


def digit_loaders(batch_size: int = 64) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return split(*digits(), batch_size=batch_size)


def diabetes_loaders(batch_size: int = 64) -> tuple[DataLoader[Any], DataLoader[Any]]:
    x, y = diabetes()
    return split(x, y[:, None], batch_size=batch_size)


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers of these widths with activations between them, after a flattening."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(before, after)]
        layers += [activation()] if i < len(widths) - 2 else []
    return nn.Sequential(*layers)


def cnn() -> nn.Sequential:
    """Return a small convolutional network for the digits, with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
