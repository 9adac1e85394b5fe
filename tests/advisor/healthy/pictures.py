"""Datasets of pictures that resemble the faulty ones."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from tests.advisor.faulty.pictures import (
    Colours,
    Ink,
    Photographs,
    of_colours,
    photographs,
    segmenter,
    shuffled,
    weighted,
)
from tests.advisor.programs import Arguments, Task, digits, healthy, mlp


@healthy
def mask_flipped_too() -> Arguments:
    return segmenter(), shuffled(Ink())


@healthy
def noise_on_the_image_alone() -> Arguments:
    class Noisy(Ink):
        flip = v2.GaussianNoise(sigma=0.1, clip=False)

        def sample(self, image: Tensor, label: Tensor) -> Any:
            return self.flip(image), (image[0] > 0).long()

    return segmenter(), shuffled(Noisy())


@healthy
def turned_with_the_mask() -> Arguments:
    class Turned(Ink):
        def sample(self, image: Tensor, label: Tensor) -> Any:
            turns = int(torch.randint(4, ()))
            mask = (image[0] > 0).long().rot90(turns)
            return image.rot90(turns, (-2, -1)) + 0.3 * torch.randn(8, 8), mask

    return segmenter(), shuffled(Turned())


@healthy
def flipped_under_a_symmetric_mask() -> Arguments:
    class Framed(Ink):
        def sample(self, image: Tensor, label: Tensor) -> Any:
            mask = torch.zeros(8, 8).long()
            mask[2:6, 2:6] = 1
            return (image.flip(-1) if torch.rand(()) < 0.5 else image) + 3 * mask, mask

    return segmenter(), shuffled(Framed())


@healthy
def permuted_in_dataset() -> Arguments:
    return Task(mlp(192, 32, 10)), shuffled(Colours())


@healthy
def weights_of_samples() -> Arguments:
    y = digits()[1]
    return Task(mlp(64, 32, 10)), weighted((1 / y.bincount())[y])


@healthy
def photographs_with_channels_moved() -> Arguments:
    return of_colours(), shuffled(Photographs())


@healthy
def rotated_photographs_with_noise() -> Arguments:
    images = torch.from_numpy(photographs()[0]).permute(0, 3, 2, 1).float() / 127.5 - 1
    noise = 0.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return of_colours(), shuffled(TensorDataset(images + noise, photographs()[1]))


@healthy
def stripes_in_three_channels() -> Arguments:
    """Fine stripes along one side: neighbours along it differ much."""
    generator = torch.Generator().manual_seed(0)
    pitch = 1 + 2 * torch.rand(600, 3, 1, 1, generator=generator)
    phase = 6 * torch.rand(600, 3, 1, 1, generator=generator)
    images = (pitch * torch.arange(32.0) + phase).sin().expand(600, 3, 32, 32)
    kinds = (pitch[:, 0, 0, 0] > 2).long()
    return of_colours(), shuffled(TensorDataset(images, kinds))


@healthy
def noise_in_three_channels() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(600, 3, 16, 16, generator=generator)
    kinds = torch.arange(600) % 2
    return of_colours(), shuffled(TensorDataset(images * (1 + kinds)[:, None, None, None], kinds))
