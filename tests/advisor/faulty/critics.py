"""Generators and their critics."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


class Adversarial(Task):
    """A generator of digits and its critic; ``asked`` is the label that the generator wants."""

    real, fake, asked = 1.0, 0.0, 1.0

    def __init__(self) -> None:
        super().__init__(nn.Sequential(mlp(16, 64, 64), nn.Tanh()))
        self.critic = mlp(64, 64, 1, activation=nn.LeakyReLU)
        self.automatic_optimization = False

    def judged(self, x: Tensor, label: float) -> Tensor:
        logits = self.critic(x)
        target = torch.full_like(logits, label)
        return functional.binary_cross_entropy_with_logits(logits, target)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        ours: Any
        theirs: Any
        ours, theirs = self.optimizers()
        made = self.net(torch.randn(len(x), 16))
        loss = self.judged(made, self.asked)
        ours.zero_grad()
        self.manual_backward(loss)
        ours.step()
        other = self.judged(x, self.real) + self.judged(made.detach(), self.fake)
        theirs.zero_grad()
        self.manual_backward(other)
        theirs.step()
        return other

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.judged(batch[0], self.real))

    def configure_optimizers(self) -> Any:
        parts = (self.net, self.critic)
        return [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.999)) for part in parts]


def _for_real() -> Arguments:
    return Adversarial(), digit_loaders()


@faulty("LP265", "net.0.1", source="zeros for the generator in a GAN", mended=_for_real)
def asks_for_fake() -> Arguments:
    class Mistaken(Adversarial):
        asked = 0.0

    return Mistaken(), digit_loaders()


@faulty("LP265", "net.0.1", source="a least squares GAN with smoothed labels")
def asks_for_fake_by_squares() -> Arguments:
    class Squares(Adversarial):
        real, fake, asked = 0.9, 0.1, 0.1

        def judged(self, x: Tensor, label: float) -> Tensor:
            score = self.critic(x)
            return functional.mse_loss(score, torch.ones_like(score) * label)

    return Squares(), digit_loaders()
