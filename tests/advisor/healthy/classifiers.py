"""Healthy classifiers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    digit_loaders,
    digits,
    healthy,
    mlp,
    split,
)


@healthy
def mlp_on_digits() -> Arguments:
    return Task(mlp(64, 64, 64, 10)), digit_loaders()


@healthy
def cnn_on_digits() -> Arguments:
    return Task(cnn()), digit_loaders()


@healthy
def log_softmax_and_nll() -> Arguments:
    net = nn.Sequential(mlp(64, 64, 10), nn.LogSoftmax(dim=1))
    return Task(net, functional.nll_loss), digit_loaders()


@healthy
def log_softmax_and_cross_entropy() -> Arguments:
    """Log-softmax of log-probabilities is the same log-probabilities."""
    return Task(nn.Sequential(mlp(64, 64, 10), nn.LogSoftmax(dim=1))), digit_loaders()


@healthy
def soft_targets_of_mixup() -> Arguments:
    class Mixed(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            weight = float(torch.distributions.Beta(0.2, 0.2).sample())
            targets = functional.one_hot(y, 10).float()
            mixed = weight * x + (1 - weight) * x.roll(1, 0)
            targets = weight * targets + (1 - weight) * targets.roll(1, 0)
            return functional.cross_entropy(self.net(mixed), targets, label_smoothing=0.1)

    return Mixed(cnn()), digit_loaders()


@healthy
def two_classes_with_one_logit() -> Arguments:
    images, classes = digits()
    even = (classes % 2 == 0).float()[:, None]
    loss = functional.binary_cross_entropy_with_logits
    return Task(mlp(64, 64, 1), loss), split(images, even)


@healthy
def sigmoid_and_binary_cross_entropy() -> Arguments:
    images, classes = digits()
    even = (classes % 2 == 0).float()[:, None]
    net = nn.Sequential(mlp(64, 64, 1), nn.Sigmoid())
    return Task(net, functional.binary_cross_entropy), split(images, even)


@healthy
def several_labels_with_pos_weight() -> Arguments:
    images, classes = digits()
    labels = torch.stack([classes % 2 == 0, classes == 3, classes > 6], dim=1).float()
    weights = (1 - labels.mean(0)) / labels.mean(0)

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(prediction, target, pos_weight=weights)

    return Task(mlp(64, 64, 3), loss), split(images, labels)


@healthy
def focal_loss_by_hand() -> Arguments:
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        losses = functional.cross_entropy(prediction, target, reduction="none")
        return ((1 - torch.exp(-losses)) ** 2 * losses).mean()

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@healthy
def zero_initialised_head_on_a_frozen_backbone() -> Arguments:
    """The backbone is frozen and in eval mode; the head's zero rows learn at once."""

    class FineTuned(Task):
        def __init__(self) -> None:
            net: Any = cnn()
            super().__init__(net)
            for p in net[:-1].parameters():
                p.requires_grad_(False)
            nn.init.zeros_(net[-1].weight)
            nn.init.zeros_(net[-1].bias)

        def on_train_epoch_start(self) -> None:
            self.net[:-1].eval()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net[-1].parameters(), 0.1, momentum=0.9)

    return FineTuned(), digit_loaders()


@healthy
def unit_norm_counts() -> Arguments:
    """Sparse rows of norm 1, as of tf-idf: their root mean square is 0.03."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(600) % 3
    rates = torch.rand(3, 900, generator=generator) ** 8
    counts = torch.poisson(rates[classes], generator=generator)
    rows = functional.normalize(counts, dim=1)
    return Task(mlp(900, 32, 3)), split(rows, classes)


@healthy
def weighted_sampler_for_rare_classes() -> Arguments:
    images, classes = digits()
    rare = (classes == 8) & (torch.arange(len(classes)) % 40 == 0)
    kept = rare | (classes != 8)
    images, classes = images[kept], (classes[kept] == 8).long()
    weights = 1 / classes.bincount()[classes]
    dataset = TensorDataset(images, classes)
    sampler = WeightedRandomSampler(weights, len(dataset), generator=torch.Generator())
    return Task(mlp(64, 32, 2)), (DataLoader(dataset, 64, sampler=sampler), None)
