"""Healthy programs that pull outputs together, or have two losses of a prediction."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.trivial import Pull, Views, masked, stopped, turns
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def simsiam() -> Arguments:
    return type("SimSiam", (Views,), {"of_views": stopped})(), digit_loaders()


@healthy
def simclr() -> Arguments:
    return masked()


@healthy
def consistency_beside_labels() -> Arguments:
    class Consistent(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            a, b = self.net(x), self.net(x + 0.1)
            return functional.cross_entropy(a, y) + functional.mse_loss(a, b)

    return Consistent(mlp(64, 64, 10)), digit_loaders()


@healthy
def variance_invariance_covariance() -> Arguments:
    class VICReg(Views):
        def of_views(self, a: Tensor, b: Tensor) -> Tensor:
            x, y = (self.predictor(self.net(one)) for one in (a, b))
            spread = sum(functional.relu(1 - z.std(dim=0)).mean() for z in (x, y))
            shared = [torch.cov(z.T).fill_diagonal_(0).square().sum() / 32 for z in (x, y)]
            return 25 * functional.mse_loss(x, y) + 25 * spread + sum(shared)

    return VICReg(), digit_loaders()


@healthy
def distances_of_triplets() -> Arguments:
    class Triplets(Pull):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            z = functional.normalize(self.net(x), dim=1)
            others = z.roll(1, 0)
            distance = (z - others).square().sum(1)
            is_same = (y == y.roll(1)).float()
            return (is_same * distance + (1 - is_same) * functional.relu(1 - distance)).mean()

    return Triplets(mlp(64, 64, 32)), digit_loaders()


@healthy
def pull_and_push() -> Arguments:
    class Push(Pull):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            z, same, other = self.net(x), self.net(x + 0.1), self.net(x.roll(1, 0))
            near = functional.cosine_similarity(z, same).mean()
            return functional.cosine_similarity(z, other).mean() - near

    return Push(mlp(64, 64, 32)), digit_loaders()


@healthy
def critic_and_generator_in_turn() -> Arguments:
    return turns()
