"""Healthy programs that clip, close to those that clip to nothing."""

import torch

from tests.advisor.faulty.clipping import sgd
from tests.advisor.plans import Planned, stopped, trainer
from tests.advisor.programs import Arguments, digit_loaders, healthy


@healthy
def tight_clipping_with_adam() -> Arguments:
    return stopped(gradient_clip_val=1e-2)


@healthy
def tighter_clipping_with_adam() -> Arguments:
    return stopped(gradient_clip_val=1e-3)


@healthy
def tight_clipping_with_sgd() -> Arguments:
    return Planned(sgd), digit_loaders(), trainer(gradient_clip_val=0.02)


@healthy
def gradients_of_norm_one_with_sgd() -> Arguments:
    """Each step has the length of the learning rate."""

    class Normalised(Planned):
        def on_before_optimizer_step(self, optimizer: object) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    return Normalised(sgd), digit_loaders()


@healthy
def small_gradients_that_nothing_clips() -> Arguments:
    """A small loss, and a rate to match."""

    class Small(Planned):
        def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
            return 1e-5 * super().training_step(batch, batch_idx)

    def configure(module: Planned) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), 1e3)

    return Small(configure), digit_loaders()
