"""Datasets that seed generators on purpose."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tests.advisor.faulty.pictures import shuffled
from tests.advisor.faulty.reseeded import Shifted
from tests.advisor.programs import Arguments, Task, healthy, mlp, split
from tests.advisor.programs import digits as images


def _of(dataset: Any) -> Arguments:
    x, y = images()
    dataset.images, dataset.labels = x[:1400], y[:1400]
    return Task(mlp(64, 32, 10)), (shuffled(dataset), split(x[1400:], y[1400:])[1])


@healthy
def image_and_mask_from_one_drawn_seed() -> Arguments:
    """The same seed for two transforms, drawn anew for each sample."""

    class Joint(Shifted):
        def sample(self, image: Tensor, label: Tensor) -> Any:
            seed = int(np.random.randint(2**31))
            torch.manual_seed(seed)
            random.seed(seed)
            shift = self.shift()
            torch.manual_seed(seed)
            return image.roll(shift, -1).roll(-self.shift(), -1), label

    return _of(Joint())


@healthy
def samples_from_the_seed_of_their_index() -> Arguments:
    class Synthetic(Dataset[Any]):
        def __len__(self) -> int:
            return 640

        def __getitem__(self, index: int) -> Any:
            torch.manual_seed(index)
            x = torch.randn(16)
            return x, int(x.sum() > 0)

    return Task(mlp(16, 32, 2)), shuffled(Synthetic())


@healthy
def fixed_generator_of_its_own() -> Arguments:
    class Fixed(Shifted):
        def shift(self) -> int:
            return int(torch.randint(-1, 2, (), generator=torch.Generator().manual_seed(0)))

    return _of(Fixed())


@healthy
def augmented_from_the_global_generator() -> Arguments:
    return _of(Shifted())
