"""Early stopping that ends a fit before its schedule has acted, and batch norms' momentum."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ReduceLROnPlateau

from lightning_practices.callbacks import EarlyStopping as OwnEarlyStopping
from tests.advisor.plans import BATCHES, Planned, trainer
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    faulty,
)

_PLATEAU = "reports of ReduceLROnPlateau with more patience than early stopping"
_MOMENTUM = "momentum of Keras in torchvision and in ports of segmentation networks"


def patient(
    stop: Any, make: Any, interval: str = "epoch", monitor: str = "val_loss", **options: Any
) -> Arguments:
    """Return a program with early stopping and a schedule."""

    def configure(module: Planned) -> Any:
        optimizer = SGD(module.parameters(), 0.1, momentum=0.9)
        frequency = options.pop("frequency", 1)
        scheduler = {"scheduler": make(optimizer), "interval": interval, "frequency": frequency}
        return {"optimizer": optimizer, "lr_scheduler": scheduler | {"monitor": monitor}}

    limits = {name: x for name, x in options.items() if name != "frequency"}
    plan = trainer(callbacks=[stop], **{"max_epochs": 100} | limits)
    return Planned(configure), digit_loaders(), plan


@faulty("LP671", source=_PLATEAU)
def stopped_before_the_rate_falls() -> Arguments:
    return patient(
        EarlyStopping("val_acc", patience=5, mode="max"),
        lambda o: ReduceLROnPlateau(o, "max", patience=5),
        monitor="val_acc",
    )


@faulty("LP671", source=_PLATEAU)
def stopped_by_checks_within_the_epochs() -> Arguments:
    """Four checks are an epoch, and the schedule is stepped by every second epoch."""
    return patient(
        OwnEarlyStopping("val_loss", patience=20),
        lambda o: ReduceLROnPlateau(o, patience=3),
        frequency=2,
        val_check_interval=0.25,
    )


@faulty("LP672", source="early stopping with the patience of a plain schedule, and restarts")
def stopped_within_the_second_cycle() -> Arguments:
    restarts = EarlyStopping("val_loss", patience=5)
    return patient(restarts, lambda o: CosineAnnealingWarmRestarts(o, 10, 2))


@faulty("LP672", source="early stopping with the patience of a plain schedule, and cycles")
def stopped_within_a_cycle_of_steps() -> Arguments:
    def cycles(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=4 * BATCHES)

    return patient(EarlyStopping("val_loss", patience=3), cycles, "step")


def convolutions(momentum: float | None) -> nn.Module:
    """Return a network of digits with batch norms of this momentum."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, momentum=momentum),
        nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip


@faulty("LP351", "net.1", source=_MOMENTUM)
def momentum_as_in_keras() -> Arguments:
    return Task(convolutions(0.99)), digit_loaders(16)


@faulty("LP351", "net.2", source=_MOMENTUM)
def momentum_of_perceptrons_set_later() -> Arguments:
    net = nn.Sequential(nn.Flatten(), nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU())
    net.append(nn.Linear(32, 1))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = 0.9
    return Task(net, nn.functional.mse_loss), diabetes_loaders(16)


@faulty("LP352", "net.1", source=_MOMENTUM)
def momentum_as_in_keras_with_large_batches() -> Arguments:
    return Task(convolutions(0.99)), digit_loaders(256)


def shifted(momentum: float, plan: Trainer) -> Arguments:
    """Return a regression of features that are far from 0, with batch norm in front."""
    torch.manual_seed(0)
    x, y = torch.randn(640, 10) * 3 + 5, torch.randn(640, 1)
    data = torch.utils.data.TensorDataset(x, y + x[:, :1])
    loader = torch.utils.data.DataLoader(data, 64, shuffle=True)
    head = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    net = nn.Sequential(nn.BatchNorm1d(10, momentum=momentum), head)
    return Task(net, nn.functional.mse_loss), loader, plan


@faulty("LP353", "net.0", source="momentum 0.001 in a fit of 100 batches")
def momentum_too_small_for_the_fit() -> Arguments:
    return shifted(0.001, trainer(max_epochs=10))


@faulty("LP353", "net.1", source="1 - 0.997 of Keras in a fit of 110 batches")
def momentum_of_convolutions_too_small_for_the_fit() -> Arguments:
    return Task(convolutions(0.003)), digit_loaders(), trainer(max_epochs=5)
