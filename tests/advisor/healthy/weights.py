"""Healthy programs whose losses have weights of classes or smoothed targets."""

import torch
from torch import nn

from tests.advisor.faulty.weights import uneven, weighted
from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy, mlp, split


@healthy
def balanced_weights() -> Arguments:
    counts = uneven()[1].bincount().float()
    return weighted(counts.sum() / (10 * counts))


@healthy
def weights_by_the_root_of_the_frequencies() -> Arguments:
    return weighted(uneven()[1].bincount().float().rsqrt())


@healthy
def weights_for_another_reason() -> Arguments:
    weight = torch.ones(10)
    weight[0] = 3.0
    return weighted(weight)


@healthy
def weight_of_rare_positives() -> Arguments:
    x, y = digits()
    rare = (y == 5).float()[:, None]
    loss = nn.BCEWithLogitsLoss(pos_weight=(rare == 0).sum() / rare.sum())
    return Task(mlp(64, 32, 1), loss), split(x, rare)


@healthy
def a_little_smoothing() -> Arguments:
    return Task(mlp(64, 64, 10), nn.CrossEntropyLoss(label_smoothing=0.2)), digit_loaders()
