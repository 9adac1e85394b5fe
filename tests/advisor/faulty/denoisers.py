"""Denoisers that are trained on the noisy input which they get."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp

Pick = Callable[[Tensor, Tensor, Tensor], Tensor]  # the target, of sample, noise and noisy sample


class Diffusion(Task):
    """A network that gets a noisy sample and the time, for noise of a random level."""

    def __init__(self, pick: Pick) -> None:
        super().__init__(mlp(65, 128, 64))
        self.pick = pick

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        t = torch.rand(len(x), 1)
        noise = torch.randn_like(x)
        noisy = (1 - t).sqrt() * x + t.sqrt() * noise
        prediction = self.net(torch.cat([noisy, t], dim=1))
        return functional.mse_loss(prediction, self.pick(x, noise, noisy))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 3e-3)


def _right() -> Arguments:
    return Diffusion(lambda x, noise, noisy: noise), digit_loaders()


@faulty("LP282", "net.3", source="x_noisy in place of noise", mended=_right)
def noisy_sample_as_target() -> Arguments:
    return Diffusion(lambda x, noise, noisy: noisy.detach()), digit_loaders()


@faulty("LP282", source="a schedule of alphas, convolutions, and an absolute error by hand")
def noisy_picture_as_target() -> Arguments:
    class Pictures(Task):
        alphas: Tensor

        def __init__(self) -> None:
            super().__init__(
                nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(),
                              nn.Conv2d(16, 1, 3, padding=1))
            )  # fmt: skip
            self.register_buffer("alphas", torch.linspace(0.99, 0.9, 100).cumprod(dim=0))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            t = torch.randint(100, (len(x),))
            alpha = self.alphas[t].view(-1, 1, 1, 1)
            noisy = torch.sqrt(alpha) * x + torch.sqrt(1 - alpha) * torch.randn(x.shape)
            time = (t / 100).view(-1, 1, 1, 1).expand_as(x)
            return (noisy - self.net(torch.cat([noisy, time], dim=1))).abs().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Pictures(), digit_loaders()


@faulty("LP282", "net.3", source="a denoising autoencoder compared with what it gets")
def wide_autoencoder_of_noisy_samples() -> Arguments:
    class Noisy(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            x = x + 0.3 * torch.randn_like(x)
            return functional.mse_loss(self.net(x), x)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Noisy(mlp(64, 128, 64)), digit_loaders()


@faulty("LP282", source="a narrow network of a noisy sample and the time")
def narrow_denoiser_that_gets_the_time() -> Arguments:
    module = Diffusion(lambda x, noise, noisy: noisy)
    module.net = mlp(65, 32, 64)
    return module, digit_loaders()


@faulty("LP282", source="noise of a random level that the network isn't told")
def wide_denoiser_of_a_hidden_level() -> Arguments:
    class Noisy(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            noisy = x + torch.rand(len(x), 1) * torch.randn_like(x)
            return functional.mse_loss(self.net(noisy), noisy)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Noisy(mlp(64, 128, 64)), digit_loaders()
