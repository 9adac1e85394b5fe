"""Data that libraries ship, as datamodules, split by seed."""

from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typing_extensions import override

from lightning_practices.mixins import DataPractices

_TEST_BATCH = 256


class Data(DataPractices, LightningDataModule):
    """Three data sets of images and labels.

    Args:
        train: To fit.
        val: To choose.
        test: To report.
        seed: Seed of the order of training batches, so that it is the same for all settings.
        batch_size: Samples of a training batch.
        **practices: See ``DataPractices``.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_practices.reproduce import Data
        >>> parts = [TensorDataset(torch.randn(n, 1, 8, 8), torch.zeros(n)) for n in (64, 8, 8)]
        >>> len(Data(*parts, seed=0, batch_size=16).train_dataloader())
        4
    """

    def __init__(
        self,
        train: Dataset[Any],
        val: Dataset[Any],
        test: Dataset[Any],
        seed: int,
        batch_size: int = 32,
        **practices: Any,
    ) -> None:
        super().__init__(**practices)
        self.train, self.val, self.test = train, val, test
        self.seed, self.batch_size = seed, batch_size

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.train, self.batch_size, shuffle=True, generator=order, drop_last=True
        )

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, _TEST_BATCH)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, _TEST_BATCH)


def digits(seed: int, labels: int, *, scale: float = 1.0, **options: Any) -> Data:
    """Return scikit-learn's 1,797 digits: 300 to choose, 500 to report.

    Args:
        seed: Seed of the split.
        labels: Number of images to fit, at most 997.
        scale: Grey level of white. The images have the shape (1, 8, 8).
        **options: Arguments of :class:`Data`.

    Example:
        >>> from lightning_practices.reproduce import digits
        >>> images, labels = digits(seed=0, labels=100).train[:]
        >>> images.shape, labels.bincount()  # shares as in all digits
        (torch.Size([100, 1, 8, 8]), tensor([10, 10, 10, 10, 10, 10, 10, 10, 10, 10]))
    """
    images, classes = _digits()
    return _split(images * scale, classes, seed, (labels, 300, 500), options)


def solar_cells(seed: int, labels: int, size: int = 96, **options: Any) -> Data:
    """Return solar cells, and whether each is defective: 124 to choose, 500 to report.

    The 2,624 cells of ``elpv-dataset`` are electroluminescence photographs of 300 x 300 pixels, in
    grey. A cell counts as defective if the experts' probability of a defect is above one half, as
    that of 821 cells is.

    Source: S. Deitsch and others, 2019, *Automatic classification of defective photovoltaic module
    cells in electroluminescence images*. The images' licence is CC BY-NC-SA 4.0.

    Args:
        seed: Seed of the split.
        labels: Number of images to fit, at most 2,000.
        size: Edge of the images, to which they are reduced by averaging. They have the shape
            (1, size, size), and values from 0 to 1.
        **options: Arguments of :class:`Data`.

    Example:
        >>> from lightning_practices.reproduce import solar_cells
        >>> images, defective = solar_cells(seed=0, labels=200, size=64).train[:]
        >>> images.shape, int(defective.sum())
        (torch.Size([200, 1, 64, 64]), 63)
    """
    images, defective = _solar_cells(size)
    return _split(images, defective, seed, (labels, 124, 500), options)


def _split(
    images: Tensor, classes: Tensor, seed: int, sizes: tuple[int, int, int], options: Any
) -> Data:
    """Split into parts of some sizes with as equal shares of the classes as can be.

    The last part doesn't depend on the size of the first.
    """
    from sklearn.model_selection import train_test_split

    rest, parts = torch.arange(len(classes)), list[Dataset[Any]]()
    for size in reversed(sizes):
        part = rest
        if size < len(rest):
            of = classes[rest]
            rest, part = train_test_split(rest, test_size=size, stratify=of, random_state=seed)
        parts.append(TensorDataset(images[part], classes[part]))
    train, val, test = reversed(parts)
    return Data(train, val, test, seed, **options)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)


@cache
def _solar_cells(size: int) -> tuple[Tensor, Tensor]:
    from elpv_dataset.utils import load_dataset

    pixels, probabilities, _ = load_dataset()
    images = torch.from_numpy(pixels)[:, None].float() / 255
    reduced = nn.functional.interpolate(images, (size, size), mode="area")
    return reduced, torch.from_numpy(probabilities > 0.5).long()
