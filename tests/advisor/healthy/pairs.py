"""Contrastive losses that resemble the faulty ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.pairs import Paired, Triplets, paired, triplets
from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy, mlp, split


@healthy
def pairs_on_the_diagonal() -> Arguments:
    return paired()


@healthy
def positives_before_a_queue() -> Arguments:
    """The targets are 0, as the positive is the first column, before a queue of negatives."""

    class Queue(Paired):
        def of_views(self, a: Tensor, b: Tensor) -> Tensor:
            first, second = (functional.normalize(self.predictor(self.net(x))) for x in (a, b))
            positive = (first * second.detach()).sum(1, keepdim=True)
            negatives = first @ functional.normalize(torch.randn(63, 32)).T
            logits = torch.cat([positive, negatives], dim=1) / 0.1
            return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    return Queue(), digit_loaders()


@healthy
def scale_that_is_learnt() -> Arguments:
    class Learnt(Paired):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.0))

        def of_views(self, a: Tensor, b: Tensor) -> Tensor:
            first, second = (functional.normalize(self.predictor(self.net(x))) for x in (a, b))
            return self.of_logits(first @ second.T * self.scale.exp())

    return Learnt(), digit_loaders()


@healthy
def as_many_classes_as_samples() -> Arguments:
    """The logits are square, and each is that of a class."""

    class Classes(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return self.loss(functional.normalize(self.net(x)) @ self.classes().T / 0.1, y)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 16))
            self.means = nn.Linear(16, 16)
            self.register_buffer("places", torch.eye(16))

        def classes(self) -> Any:
            return functional.normalize(self.means(self.places))

    return Classes(), split(*digits(), batch_size=16)


@healthy
def triplets_of_a_batch() -> Arguments:
    return triplets()


@healthy
def hardest_triplets() -> Arguments:
    """The farthest positive and the nearest negative of each sample."""

    class Hardest(Triplets):
        def of_embeddings(self, z: Tensor, y: Tensor) -> Tensor:
            z = functional.normalize(z)
            distance = (z[:, None] - z).square().sum(-1).add(1e-8).sqrt()
            same = y[:, None] == y
            far = distance.masked_fill(~same, 0).amax(1)
            near = distance.masked_fill(same, 9).amin(1)
            return functional.softplus(far - near).mean()

    return Hardest(), digit_loaders()


@healthy
def supervised_contrast() -> Arguments:
    class Supervised(Triplets):
        def of_embeddings(self, z: Tensor, y: Tensor) -> Tensor:
            z = functional.normalize(z)
            own = torch.eye(len(z), dtype=torch.bool)
            logits = (z @ z.T / 0.1).masked_fill(own, -1e9)
            positive = ((y[:, None] == y) & ~own).float()
            share = (positive * logits.log_softmax(1)).sum(1) / positive.sum(1).clamp(min=1)
            return -share.mean()

    return Supervised(), digit_loaders()


@healthy
def classes_apart_alone() -> Arguments:
    """Pushes samples of different classes apart; a term keeps the embeddings small."""

    class Apart(Triplets):
        def of_embeddings(self, z: Tensor, y: Tensor) -> Tensor:
            distance = (z[:, None] - z).square().sum(-1)
            push = ((y[:, None] != y).float() * (4 - distance).relu()).mean()
            return push + 0.01 * z.square().mean()

    return Apart(), digit_loaders()
