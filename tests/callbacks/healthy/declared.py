"""Fits that train well, by their own metric: how they are declared."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from tests.advisor.programs import Task, digits
from tests.callbacks.faulty_fits import Fit

Metric = Callable[[], float]
Make = Callable[[], tuple[Fit, Metric]]


@dataclass(frozen=True)
class HealthyFit:
    """A healthy fit, and the bound that its metric reaches.

    Attributes:
        make: Makes the fit, and a function that measures what its module has learnt.
        above: The metric is above this number; ``None`` if it has to be low.
        below: The metric is below this number; ``None`` if it has to be high.
        full: Whether it is fitted with ``--full`` alone.
    """

    make: Make
    above: float | None
    below: float | None
    full: bool

    def has_learnt(self, value: float) -> bool:
        """Say whether a value of the metric is within the bound."""
        return value > self.above if self.above is not None else value < (self.below or 0.0)


HEALTHY_FITS: dict[str, HealthyFit] = {}


def fits_well(
    *, above: float | None = None, below: float | None = None, full: bool = False
) -> Callable[[Make], Make]:
    """Declare a function that makes a healthy fit."""

    def declared(make: Make) -> Make:
        assert make.__name__ not in HEALTHY_FITS
        HEALTHY_FITS[make.__name__] = HealthyFit(make, above, below, full)
        return make

    return declared


def load_all() -> None:
    """Import the files that declare healthy fits."""
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"tests.callbacks.healthy.{info.name}")


@torch.no_grad()
def accuracy(net: Any, x: Tensor, y: Tensor) -> float:
    """Return the share of the samples whose class is the one of the largest output."""
    was = net.training
    net.eval()
    right = (net(x).argmax(1) == y).float().mean().item()
    net.train(was)
    return float(right)


@torch.no_grad()
def digit_accuracy(net: Any) -> float:
    """Return the accuracy on all digits."""
    return accuracy(net, *digits())


@torch.no_grad()
def squared_error(net: Any, x: Tensor, y: Tensor) -> float:
    """Return the mean squared error of a network in eval mode."""
    was = net.training
    net.eval()
    error = (net(x) - y).square().mean().item()
    net.train(was)
    return float(error)


class Own(Task):
    """A task whose loss needs more than an output and a target: ``loss_of`` gets the batch."""

    def loss_of(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss_of(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss_of(batch))


class Manual(Task):
    """A task under manual optimization."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def step(self, optimizer: Any, loss: Tensor) -> None:
        """Zero the gradients, differentiate, and step."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def of(module: LightningModule, metric: Callable[[Any], float]) -> Metric:
    """Return a metric of a module's network."""
    return lambda: metric(module.net)
