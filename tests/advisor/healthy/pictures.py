"""Datasets of pictures that resemble the faulty ones."""

from typing import Any

from torch import Tensor
from torchvision.transforms import v2

from tests.advisor.faulty.pictures import Colours, Ink, segmenter, shuffled, weighted
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
def permuted_in_dataset() -> Arguments:
    return Task(mlp(192, 32, 10)), shuffled(Colours())


@healthy
def weights_of_samples() -> Arguments:
    y = digits()[1]
    return Task(mlp(64, 32, 10)), weighted((1 / y.bincount())[y])
