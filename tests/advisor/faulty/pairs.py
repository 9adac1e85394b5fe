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


class Triplets(Task):
    """Has a loss of embeddings and their classes."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 16))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.of_embeddings(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def of_embeddings(self, z: Tensor, y: Tensor) -> Tensor:
        same = y[:, None] == y
        positive, negative = (mask.float().multinomial(1)[:, 0] for mask in (same, ~same))
        return self.of_triplets(z, z[positive], z[negative])

    def of_triplets(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return functional.triplet_margin_loss(anchor, positive, negative)


def triplets() -> Arguments:
    return Triplets(), digit_loaders()


@faulty("LP270", "net.3", source="triplet_margin_loss with negatives first", mended=triplets)
def negatives_before_positives() -> Arguments:
    class Exchanged(Triplets):
        def of_triplets(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            return functional.triplet_margin_loss(anchor, negative, positive)

    return Exchanged(), digit_loaders()


@faulty("LP270", source="a margin loss of pairs with the label of dissimilar pairs")
def label_of_dissimilar_pairs() -> Arguments:
    class Pairs(Triplets):
        def of_embeddings(self, z: Tensor, y: Tensor) -> Tensor:
            z = functional.normalize(z)
            distance = (z - z.roll(1, 0)).square().sum(1).add(1e-8).sqrt()
            differs = (y != y.roll(1)).float()
            return (differs * distance**2 + (1 - differs) * (1 - distance).relu() ** 2).mean()

    return Pairs(), digit_loaders()


@faulty("LP270", source="a triplet loss written out, with the distances exchanged")
def distances_exchanged() -> Arguments:
    class Written(Triplets):
        def of_triplets(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            near, far = ((anchor - x).square().sum(1) for x in (positive, negative))
            return (far - near + 0.5).relu().mean()

    return Written(), digit_loaders()
