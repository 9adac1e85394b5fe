"""Contrastive losses that resemble the faulty ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.pairs import Paired, paired
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
