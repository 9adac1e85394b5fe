"""Mixed samples with the weights of their inputs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.mixup import Mixed, mixed
from tests.advisor.programs import Arguments, cnn, digit_loaders, healthy, mlp


@healthy
def mixed_by_one_share() -> Arguments:
    return mixed()


@healthy
def mixed_with_the_other_order_first() -> Arguments:
    class Soft(Mixed):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            share = torch.distributions.Beta(0.3, 0.3).sample()
            hot = functional.one_hot(y, 10).float()
            inputs = x.roll(1, 0) * (1 - share) + x * share
            return self.loss(self.net(inputs), torch.lerp(hot.roll(1, 0), hot, share))

    return Soft(cnn()), digit_loaders()


@healthy
def mixed_inputs_with_the_target_of_the_larger_part() -> Arguments:
    class Larger(Mixed):
        def share(self) -> Any:
            return max(share := super().share(), 1 - share)

        def loss_of(self, output: Tensor, y: Tensor, other: Tensor, share: Any) -> Any:
            return self.loss(output, y)

    return Larger(mlp(64, 64, 10)), digit_loaders()
