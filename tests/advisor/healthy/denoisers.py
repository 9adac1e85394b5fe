"""Healthy denoisers, and autoencoders of inputs with noise."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.denoisers import Diffusion
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def sample_without_noise_as_target() -> Arguments:
    return Diffusion(lambda x, noise, noisy: x), digit_loaders()


@healthy
def velocity_as_target() -> Arguments:
    return Diffusion(lambda x, noise, noisy: noise - x), digit_loaders()


@healthy
def narrow_autoencoder_of_augmented_samples() -> Arguments:
    """Noise as augmentation of samples that are compressed."""

    class Noisy(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            x = x + 0.1 * torch.randn_like(x)
            return functional.mse_loss(self.net(x), x)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x = batch[0].flatten(1)
            self.log("val_loss", functional.mse_loss(self.net(x), x))

    return Noisy(mlp(64, 64, 8, 64, 64)), digit_loaders()


@healthy
def narrow_autoencoder_with_noise_of_a_random_level() -> Arguments:
    """Augmentation by noise whose level is drawn for each sample, which the network isn't told."""

    class Noisy(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            x = x + 0.1 * torch.rand(len(x), 1) * torch.randn_like(x)
            return functional.mse_loss(self.net(x), x)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x = batch[0].flatten(1)
            self.log("val_loss", functional.mse_loss(self.net(x), x))

    return Noisy(mlp(64, 4, 64)), digit_loaders()


@healthy
def autoencoder_of_samples_between_integers() -> Arguments:
    """Noise that fills the gaps between integers, and a wide code."""

    class Filled(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            x = x + torch.randn_like(x) / 100
            return functional.mse_loss(self.net(x), x)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Filled(mlp(64, 128, 64)), digit_loaders()


@healthy
def sparse_autoencoder_of_augmented_samples() -> Arguments:
    """A wide code that a penalty keeps sparse: the network can't copy."""

    class Sparse(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            x = x + 0.2 * torch.randn_like(x)
            code = functional.relu(self.net[1](x))
            return functional.mse_loss(self.net[3](code), x) + 1e-3 * code.abs().sum(dim=1).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Sparse(mlp(64, 128, 64)), digit_loaders()
