"""Data that libraries ship, split by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Split:
    """The three parts of a data set.

    Attributes:
        train: To fit.
        val: To choose.
        test: To report. With the same seed it is the same for all settings.
        classes: Number of classes.
    """

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    classes: int

    @property
    def images(self) -> Tensor:
        """The first tensor of the training part."""
        return self.train.tensors[0]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Split":
        """Return the split with a function applied to the first tensor of all parts."""
        parts = (
            TensorDataset(function(part.tensors[0]), *part.tensors[1:])
            for part in (self.train, self.val, self.test)
        )
        return Split(*parts, self.classes)

    def loaders(self, batch_size: int, seed: int) -> list[DataLoader[Any]]:
        """Return loaders of the three parts; the order of training batches is the seed's."""
        order = torch.Generator().manual_seed(seed)
        return [
            DataLoader(self.train, batch_size, shuffle=True, generator=order, drop_last=True),
            DataLoader(self.val, 512),
            DataLoader(self.test, 512),
        ]


def split(
    samples: TensorDataset, train: int, seed: int, val: int | None = None, test: int | None = None
) -> Split:
    """Split samples with labels, with as equal shares of the classes as can be.

    Args:
        samples: Tensors; the last holds the labels.
        train: Number of samples to fit.
        seed: Seed of the split.
        val: Number of samples to choose; a third of the rest by default.
        test: Number of samples to report; all that is left by default.
    """
    from sklearn.model_selection import train_test_split

    labels = samples.tensors[-1]
    classes = int(labels.max()) + 1

    def part(indices: Any, size: int) -> Any:
        return train_test_split(
            indices, train_size=size, stratify=labels[indices], random_state=seed
        )

    fitted, rest = part(torch.arange(len(labels)).numpy(), train)
    chosen, reported = part(rest, len(rest) // 3 if val is None else val)
    if test is not None:
        reported, _ = part(reported, test)
    parts = (_subset(samples, indices) for indices in (fitted, chosen, reported))
    return Split(*parts, classes)


def _subset(samples: TensorDataset, indices: Sequence[int]) -> TensorDataset:
    return TensorDataset(*(tensor[torch.as_tensor(indices)] for tensor in samples.tensors))


@cache
def digits() -> TensorDataset:
    """Return scikit-learn's 1,797 digits: images of shape (1, 8, 8) from 0 to 1, and labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return TensorDataset(images, torch.tensor(labels))
