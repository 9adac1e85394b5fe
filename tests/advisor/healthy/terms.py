"""Losses that resemble those with faulty terms."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.terms import Masks, many_labels
from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy, mlp, split


@healthy
def sigmoid_of_many_labels() -> Arguments:
    return Task(mlp(64, 32, 3), functional.binary_cross_entropy_with_logits), many_labels()


@healthy
def softmax_and_binary_loss_of_one_hot() -> Arguments:
    x, y = digits()
    net = nn.Sequential(mlp(64, 32, 10), nn.Softmax(dim=1))
    one_hot = functional.one_hot(y, 10).float()
    return Task(net, functional.binary_cross_entropy), split(x, one_hot)


@healthy
def loss_with_and_without_smoothing() -> Arguments:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        smooth = functional.cross_entropy(x, y, label_smoothing=0.1)
        return 0.5 * functional.cross_entropy(x, y) + 0.5 * smooth

    return Task(mlp(64, 32, 10), loss), digit_loaders()


@healthy
def mixed_targets() -> Arguments:
    class Mixup(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            order = torch.randperm(len(x))
            logits = self.net(0.7 * x + 0.3 * x[order])
            return 0.7 * self.loss(logits, y) + 0.3 * self.loss(logits, y[order])

    return Mixup(mlp(64, 32, 10)), digit_loaders()


@healthy
def straight_through_threshold() -> Arguments:
    class Binary(Masks):
        def overlap(self, logits: Tensor, mask: Tensor) -> Tensor:
            soft = logits.sigmoid()
            p = (soft > 0.5).float() + soft - soft.detach()
            return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)

    return Binary(), digit_loaders()


@healthy
def hard_samples_weigh_more() -> Arguments:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        each = functional.cross_entropy(x, y, reduction="none")
        weight = 1 + (x.argmax(1) != y).float()
        total = (weight * each).mean()
        return total / total.detach().clamp(min=1) + (total - total.detach())

    return Task(mlp(64, 32, 10), loss), digit_loaders()
