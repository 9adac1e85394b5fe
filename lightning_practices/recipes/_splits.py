"""Training, validation and test splits with the same share of each class."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.mixins import DataPractices
from lightning_practices.recipes._errors import DataError

SplitName = Literal["train", "val", "test"]


def stratified_splits(labels: Tensor, seed: int = 0) -> dict[SplitName, Tensor]:
    """Return indices of three splits: three fifths, a fifth and a fifth of each class.

    Args:
        labels: The class of each sample, ``(N,)``.
        seed: The seed of the splits, which are the same in each run.

    Raises:
        DataError: If there is one class only, or a class has fewer than three samples.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"a classifier needs two classes or more, but the data has {len(classes)}")
    if int(counts.min()) < 3:
        few = int((counts < 3).sum())
        raise DataError(
            "each class needs at least three samples, one for each of the three splits, but"
            f" {few} of {len(classes)} classes have fewer: merge or remove these classes; if the"
            " target is a quantity, this is a regression, which this class doesn't do"
        )
    generator = torch.Generator().manual_seed(seed)
    parts: dict[SplitName, list[Tensor]] = {"train": [], "val": [], "test": []}
    for one in classes:
        own = (labels == one).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        fifth = max(1, len(own) // 5)
        parts["val"].append(own[:fifth])
        parts["test"].append(own[fifth : 2 * fifth])
        parts["train"].append(own[2 * fifth :])
    return {name: torch.cat(indices) for name, indices in parts.items()}


class TensorData(DataPractices, LightningDataModule):
    """Base of the datamodules whose samples are in memory: three stratified splits of them.

    Args:
        batch_size: Samples of a batch.
        **practices: See :class:`~lightning_practices.mixins.DataPractices`.
    """

    def __init__(self, batch_size: int, **practices: Any) -> None:
        super().__init__(**practices)
        self.batch_size = batch_size
        self._splits: dict[SplitName, TensorDataset] = {}

    def use(self, inputs: Tensor, labels: Tensor) -> None:
        """Divide the samples into the three splits."""
        self.num_classes = int(labels.max()) + 1
        self._splits = {
            name: TensorDataset(inputs[indices], labels[indices])
            for name, indices in stratified_splits(labels).items()
        }

    def _loader(self, split: SplitName) -> DataLoader[Any]:
        return DataLoader(self._splits[split], self.batch_size, shuffle=split == "train")

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")
