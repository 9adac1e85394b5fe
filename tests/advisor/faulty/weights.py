"""Weights of classes the wrong way round, and targets that are smoothed away."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import (
    Arguments,
    Task,
    digit_loaders,
    digits,
    faulty,
    mlp,
    split,
)


def uneven() -> tuple[Tensor, Tensor]:
    """Return the digits, with few of the classes 3 and 8."""
    x, y = digits()
    is_kept = ~torch.isin(y, torch.tensor([3, 8])) | (torch.arange(len(y)) % 10 == 0)
    return x[is_kept], y[is_kept]


def weighted(weight: Tensor) -> Arguments:
    return Task(mlp(64, 64, 10), nn.CrossEntropyLoss(weight=weight)), split(*uneven())


def _balanced() -> Arguments:
    counts = uneven()[1].bincount().float()
    return weighted(counts.sum() / (10 * counts))


@faulty("LP331", "net.3", source="class frequencies as weights", mended=_balanced)
def frequencies_as_weights() -> Arguments:
    counts = torch.bincount(uneven()[1]).float()
    return weighted(counts / counts.sum())


@faulty("LP331", "net.3", source="pos_weight = positives / negatives")
def positives_by_negatives() -> Arguments:
    x, y = digits()
    rare = (y == 5).float()[:, None]
    pos_weight = rare.sum() / (rare == 0).sum()
    return Task(mlp(64, 32, 1), nn.BCEWithLogitsLoss(pos_weight=pos_weight)), split(x, rare)


@faulty("LP248", "net.3", source="label_smoothing taken for the weight of the label")
def smoothing_of_nearly_all() -> Arguments:
    return Task(mlp(64, 64, 10), nn.CrossEntropyLoss(label_smoothing=0.9)), digit_loaders()


@faulty("LP248", "net.3", source="the same, as an argument of the function")
def smoothing_of_half() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(z, y, label_smoothing=0.6)

    return Task(mlp(64, 64, 10), loss), digit_loaders()
