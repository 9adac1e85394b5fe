"""A folder of images of the user's, for the tables that run on one."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from typing_extensions import override

from lightning_practices.recipes import DataError, ImageFolderData


class Folder(ImageFolderData):
    """Images in folders, whose training batches have an order of the seed's.

    ``root/train/CLASS/IMAGE`` is to fit, and ``root/val`` to choose; ``root/test``, or without it
    ``root/val``, is to report. A ``root/CLASS/IMAGE`` without these folders is split by the seed:
    three fifths of each class are to fit, a fifth to choose, a fifth to report.

    Args:
        root: The folder.
        seed: Seed of the split, if any, and of the order.
        batch_size: Images of a batch. The last images of an epoch that fill none are left out.
        scale: Value of white.
        **options: Arguments of ``ImageFolderData``.

    Raises:
        DataError: If a folder is missing or doesn't hold two classes with images or more, or if the
            training images don't fill a batch.
    """

    def __init__(
        self, root: str, seed: int, batch_size: int, *, scale: float = 1.0, **options: Any
    ) -> None:
        super().__init__(Path(root), batch_size=batch_size, split_seed=seed, **options)
        self.seed, self.scale = seed, scale
        count = len(self.dataset("train"))  # type: ignore[arg-type]
        if count < batch_size:
            raise DataError(
                f"{root} has {count} images to train on, but a batch has {batch_size}: give more"
            )

    @override
    def transform(self, split: str) -> v2.Compose:
        scaled = v2.Normalize([0.0], [1 / self.scale])
        return v2.Compose([super().transform(split), scaled])

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.dataset("train"), self.batch_size, shuffle=True, generator=order, drop_last=True,
            num_workers=self.num_workers, persistent_workers=self.num_workers > 0,
        )  # fmt: skip
