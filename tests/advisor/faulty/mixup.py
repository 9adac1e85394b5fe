"""Mixed samples with exchanged weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, faulty, mlp


class Mixed(Task):
    """Mixes each batch with itself in another order."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        share = self.share()
        order = torch.randperm(len(x), device=x.device)
        output = self.net(share * x + (1 - share) * x[order])
        return self.loss_of(output, y, y[order], share)

    def share(self) -> Any:
        return np.random.beta(0.4, 0.4)

    def loss_of(self, output: Tensor, y: Tensor, other: Tensor, share: Any) -> Any:
        return share * self.loss(output, y) + (1 - share) * self.loss(output, other)


def mixed() -> Arguments:
    return Mixed(mlp(64, 64, 10)), digit_loaders()


@faulty("LP266", "net.3", source="mixup with the weights exchanged in the loss", mended=mixed)
def losses_weighted_the_other_way() -> Arguments:
    class Exchanged(Mixed):
        def loss_of(self, output: Tensor, y: Tensor, other: Tensor, share: Any) -> Any:
            return (1 - share) * self.loss(output, y) + share * self.loss(output, other)

    return Exchanged(mlp(64, 64, 10)), digit_loaders()


@faulty("LP266", source="mixup by lerp, with soft targets")
def soft_targets_the_other_way() -> Arguments:
    class Soft(Mixed):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            share = torch.distributions.Beta(0.3, 0.3).sample()
            hot = functional.one_hot(y, 10).float()
            inputs = torch.lerp(x, x.flip(0), share)
            return self.loss(self.net(inputs), share * hot + (1 - share) * hot.flip(0))

    return Soft(cnn()), digit_loaders()
