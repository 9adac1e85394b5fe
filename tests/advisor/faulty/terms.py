"""Losses with a softmax over labels, equal terms, and terms without a gradient."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, digits, faulty, mlp, split


def many_labels() -> Any:
    """Return loaders of digits with three labels: odd, above four, prime."""
    x, digit = digits()
    primes = torch.isin(digit, torch.tensor([2, 3, 5, 7]))
    return split(x, torch.stack([digit % 2 == 1, digit > 4, primes], 1).float())


@faulty("LP261", "net.3", source="softmax kept from a classifier that became multi-label")
def softmax_in_forward() -> Arguments:
    class Tags(Task):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.net(x), dim=-1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.BCELoss()(self(batch[0]), batch[1])

    return Tags(mlp(64, 32, 3), functional.binary_cross_entropy_with_logits), many_labels()


def _sigmoids() -> Arguments:
    net = nn.Sequential(mlp(64, 32, 3), nn.Sigmoid())
    return Task(net, functional.binary_cross_entropy), many_labels()


@faulty("LP261", "net.1", source="multi-label head with nn.Softmax", mended=_sigmoids)
def softmax_layer() -> Arguments:
    net = nn.Sequential(mlp(64, 32, 3), nn.Softmax(dim=1))
    return Task(net, functional.binary_cross_entropy), many_labels()


class Pairs(Task):
    """Matches the two halves of a digit."""

    def __init__(self) -> None:
        super().__init__(mlp(32, 16))
        self.lower = mlp(32, 16)

    def similarities(self, batch: Any) -> Tensor:
        upper, lower = batch[0].chunk(2, dim=2)
        a, b = functional.normalize(self.net(upper)), functional.normalize(self.lower(lower))
        return a @ b.t() / 0.1

    def matched(self, x: Tensor, target: Tensor) -> Tensor:
        return (functional.cross_entropy(x, target) + functional.cross_entropy(x.t(), target)) / 2

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.similarities(batch)
        return self.matched(x, torch.arange(len(x), device=x.device))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def _matched() -> Arguments:
    return Pairs(), digit_loaders()


@faulty("LP263", source="CLIP without the transpose in the second loss", mended=_matched)
def one_direction_twice() -> Arguments:
    class Clip(Pairs):
        def matched(self, x: Tensor, target: Tensor) -> Tensor:
            rows = functional.cross_entropy(x, target)
            columns = functional.cross_entropy(x, target)
            return (rows + columns) / 2

    return Clip(), digit_loaders()


@faulty("LP263", source="a criterion called for images and texts with one matrix")
def one_matrix_for_both() -> Arguments:
    class Clip(Pairs):
        def matched(self, x: Tensor, target: Tensor) -> Tensor:
            criterion = nn.CrossEntropyLoss()
            losses = [criterion(x, torch.arange(len(x))) for _ in ("image", "text")]
            return 0.5 * sum(losses[1:], losses[0])

    return Clip(), digit_loaders()


class Masks(Task):
    """Segments the ink of a digit."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 1, 3, padding=1))

    def overlap(self, logits: Tensor, mask: Tensor) -> Tensor:
        p = logits.sigmoid()
        return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mask = (batch[0] > 0).float()
        logits = self.net(batch[0])
        loss = functional.binary_cross_entropy_with_logits(logits, mask)
        return loss + self.overlap(logits, mask)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def _soft() -> Arguments:
    return Masks(), digit_loaders()


@faulty("LP264", "net", source="Dice of a thresholded mask in the loss", mended=_soft)
def thresholded_dice() -> Arguments:
    class Hard(Masks):
        def overlap(self, logits: Tensor, mask: Tensor) -> Tensor:
            p = (torch.sigmoid(logits) > 0.5).float()
            return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)

    return Hard(), digit_loaders()


@faulty("LP264", "net.3", source="an error rate of argmax added to cross entropy")
def error_rate_in_loss() -> Arguments:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        wrong = (x.argmax(1) != y).float().mean()
        return functional.cross_entropy(x, y) + 0.5 * wrong

    return Task(mlp(64, 32, 10), loss), digit_loaders()
