"""Gradient penalties of critics, over wrong dimensions."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.advisor.healthy.penalties import Wasserstein, images
from tests.advisor.programs import Arguments, faulty


@faulty("LP293", "critic.net.4", source="the norm over the channels of an image")
def norm_over_channels() -> Arguments:
    class Channels(Wasserstein):
        def penalty(self, gradient: Tensor) -> Tensor:
            return 10 * ((gradient.norm(2, dim=1) - 1) ** 2).mean()

    return Channels(), images()


@faulty("LP293", source="the norm over the batch, written out, with a constant tensor")
def norm_over_the_batch() -> Arguments:
    class OfBatch(Wasserstein):
        def penalty(self, gradient: Tensor) -> Tensor:
            norms = gradient.view(len(gradient), -1).square().sum(0).add(1e-12).sqrt()
            return 10 * nn.functional.mse_loss(norms, torch.ones_like(norms))

    return OfBatch(), images()


@faulty("LP293", source="one norm of all gradients, and a penalty above 1 alone")
def one_norm_for_all_samples() -> Arguments:
    class One(Wasserstein):
        def gradient(self, x: Tensor) -> Tensor:
            found: Any = torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)
            return found[0].flatten(1)

        def penalty(self, gradient: Tensor) -> Tensor:
            return 10 * torch.relu(torch.linalg.vector_norm(gradient) - 1.0).pow(2)

    return One(), images()
