"""Datasets that seed global generators."""

import random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.advisor.faulty.pictures import Pictures, shuffled
from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


class Shifted(Pictures):
    """Moves each image by a random number of columns."""

    def sample(self, image: Tensor, label: Tensor) -> Any:
        return image.roll(self.shift(), -1), label

    def shift(self) -> int:
        return int(torch.randint(-1, 2, ()))


def shifted(dataset: Any) -> Arguments:
    val: DataLoader[Any] = digit_loaders()[1]
    return Task(mlp(64, 32, 10)), (shuffled(dataset), val)


@faulty("LP345", source="torch.manual_seed in __getitem__", also=("LP312",))
def seed_of_torch_in_the_dataset() -> Arguments:
    class Seeded(Shifted):
        def shift(self) -> int:
            torch.manual_seed(42)
            return super().shift()

    return shifted(Seeded())


@faulty("LP345", source="random.seed in a transform", also=("LP312",))
def seed_of_python_in_a_transform() -> Arguments:
    class Seeded(Shifted):
        def shift(self) -> int:
            random.seed(0)
            return random.choice([-1, 0, 1])

    return shifted(Seeded())
