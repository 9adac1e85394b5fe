"""Contrastive losses of pairs, with wrong targets or scales, and metric losses turned round."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.trivial import Views
from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, faulty, mlp


class Paired(Views):
    """Compares two views of each image with those of the others."""

    def of_views(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = (functional.normalize(self.predictor(self.net(x))) for x in (a, b))
        return self.of_logits(first @ second.T / 0.1)

    def of_logits(self, logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, torch.arange(len(logits)))


def paired() -> Arguments:
    return Paired(), digit_loaders()


@faulty("LP267", source="zeros as targets, as for a queue of negatives", mended=paired)
def zeros_for_the_positives() -> Arguments:
    class Zeros(Paired):
        def of_logits(self, logits: Tensor) -> Tensor:
            targets = torch.zeros(len(logits), dtype=torch.long)
            return functional.cross_entropy(logits, targets)

    return Zeros(), digit_loaders()


@faulty("LP267", source="labels of the batch as targets of a symmetric contrastive loss")
def classes_for_the_positives() -> Arguments:
    class Both(Task):
        def __init__(self) -> None:
            super().__init__(cnn())
            self.other = mlp(64, 32, 10)
            self.scale = nn.Parameter(torch.tensor(2.66))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            a, b = (functional.normalize(net(x), dim=-1) for net in (self.net, self.other))
            logits = self.scale.exp() * torch.einsum("id,jd->ij", a, b)
            return (self.loss(logits, y) + self.loss(logits.t(), y)) / 2

    return Both(), digit_loaders()


@faulty("LP268", source="a temperature of 0.07 by which the similarities are multiplied")
def multiplied_by_the_temperature() -> Arguments:
    class Multiplied(Paired):
        def of_views(self, a: Tensor, b: Tensor) -> Tensor:
            first, second = (functional.normalize(self.net(x)) for x in (a, b))
            return self.of_logits(first @ second.T * 0.07)

    return Multiplied(), digit_loaders()


@faulty("LP268", source="cosine_similarity, and a large temperature")
def divided_by_a_large_temperature() -> Arguments:
    class Large(Paired):
        def of_views(self, a: Tensor, b: Tensor) -> Tensor:
            first, second = self.net(a), self.net(b)
            cosines = functional.cosine_similarity(first[:, None], second[None], dim=-1)
            return self.of_logits(cosines / 10)

    return Large(), digit_loaders()


@faulty("LP269", source="cosines as logits")
def cosines_without_a_temperature() -> Arguments:
    class Plain(Paired):
        def of_views(self, a: Tensor, b: Tensor) -> Tensor:
            first, second = self.net(a), self.net(b)
            first = first / first.norm(dim=1, keepdim=True)
            return self.of_logits(first @ functional.normalize(second).T)

    return Plain(), digit_loaders()
