"""Folders of images, and torchvision's networks for them, from scratch or pretrained."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from typing_extensions import override

from lightning_practices.mixins import DataPractices, FineTuningMixin
from lightning_practices.recipes._classifier import Classifier
from lightning_practices.recipes._drop_block import add_drop_block
from lightning_practices.recipes._errors import DataError
from lightning_practices.recipes._pretrained import architecture_of, normalization, pretrained
from lightning_practices.recipes._splits import SplitName, stratified_splits
from lightning_practices.surgery import freeze

_TREE = """expected is a folder for each split, and in it a folder of images for each class:

    {root}
    |-- train
    |   |-- cat
    |   |   |-- 1.jpg
    |   |   `-- 2.jpg
    |   `-- dog
    |       `-- 3.jpg
    |-- val
    |   `-- the same classes
    `-- test, if there is one

With split_seed, {root} may hold the folders of the classes alone: their images are split.
"""


class ImageFolderData(DataPractices, LightningDataModule):
    """Images in folders: ``root/train/CLASS/IMAGE``, the same for ``val``, and for ``test`` if any.

    Images are resized, their centre is cropped, and values are from 0 to 1. Without a folder
    ``test``, the test is of the validation split. With ``split_seed``, ``root/CLASS/IMAGE`` is
    enough.

    Args:
        root: The folder with the folders ``train`` and ``val``, or with those of the classes.
        image_size: The edge of the images in pixels.
        resize: The shorter edge of the images, in pixels, before the centre is cropped. Training
            images keep the centre of this edge, for ``augment`` to crop ``image_size`` at random.
            Default: ``image_size``.
        batch_size: Images of a batch, in each process.
        num_workers: Processes that load images, for each process that trains.
        split_seed: The seed by which the images of each class are split, if ``root`` has no folders
            ``train`` and ``val``: three fifths for training, a fifth for validation, and a fifth
            for the test. Without it there is no split, and such a root is an error.
        **practices: See :class:`~lightning_practices.mixins.DataPractices`.

    Raises:
        DataError: If a folder is missing, or doesn't hold two classes with images or more, or the
            splits have different classes. If a class to split has fewer than three images, or
            folders in it. The message draws the tree that is expected.
    """

    def __init__(
        self,
        root: Path,
        image_size: int = 224,
        resize: int | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
        split_seed: int | None = None,
        **practices: Any,
    ) -> None:
        super().__init__(**practices)
        self.root, self.batch_size, self.num_workers = Path(root), batch_size, num_workers
        self.image_size, self.resize = image_size, resize or image_size
        self._parts: dict[SplitName, Tensor] = {}  # of a root that has no folders for them
        whole = not any((self.root / split).is_dir() for split in ("train", "val"))
        if split_seed is not None and self.root.is_dir() and whole:
            self.class_names = self._split_classes(split_seed)
        else:
            self.class_names = self._checked_classes()
        self.num_classes = len(self.class_names)

    def _split_classes(self, seed: int) -> list[str]:
        classes = self._classes(self.root)
        for name in classes:
            if any(path.is_dir() for path in (self.root / name).iterdir()):
                raise self._error(f"{self.root / name} has folders in it, and not images alone")
        self._parts = stratified_splits(torch.tensor(ImageFolder(self.root).targets), seed)
        return classes

    def _checked_classes(self) -> list[str]:
        classes = self._classes(self._folder("train"))
        for split in ("val", "test"):
            if split == "test" and not (self.root / split).exists():
                continue
            if (others := self._classes(self._folder(split), least=1)) != classes:
                missing, more = sorted({*classes} - {*others}), sorted({*others} - {*classes})
                raise self._error(
                    f"{self.root / split} has other classes than {self.root / 'train'}: it lacks"
                    f" {missing or 'none'}, and has {more or 'none'} in addition"
                )
        return classes

    def _folder(self, split: str) -> Path:
        folder = self.root / split
        if not self.root.is_dir():
            raise self._error(f"there is no folder {self.root}")
        if not folder.is_dir():
            found = sorted(path.name for path in self.root.iterdir() if path.is_dir())
            raise self._error(f"{self.root} has no folder {split!r}, only {found or 'no folders'}")
        return folder

    def _classes(self, folder: Path, least: int = 2) -> list[str]:
        try:
            classes: list[str] = ImageFolder(folder).classes
        except FileNotFoundError as error:  # no classes, or one without images
            raise self._error(f"{folder}: {error}") from error
        if len(classes) < least:
            raise self._error(f"{folder} has one class, {classes[0]!r}, and a classifier needs two")
        return classes

    def _error(self, message: str) -> DataError:
        return DataError(f"{message}\n\n{_TREE.format(root=self.root)}")

    def transform(self, split: str) -> v2.Compose:
        """Return the transform from an image of a split to a tensor; without random parts."""
        edge = self.resize if split == "train" else self.image_size
        to_float = v2.ToDtype(torch.float32, scale=True)
        return v2.Compose([v2.ToImage(), v2.Resize(self.resize), v2.CenterCrop(edge), to_float])

    def dataset(self, split: SplitName) -> Dataset[Any]:
        """Return the images of a split with their classes, as :meth:`transform` makes them."""
        if self._parts:
            images = ImageFolder(self.root, self.transform(split))
            return Subset(images, self._parts[split].tolist())
        is_there = split != "test" or (self.root / split).exists()
        folder = self.root / (split if is_there else "val")
        found: Dataset[Any] = ImageFolder(folder, self.transform(split))
        return found

    def _loader(self, split: SplitName) -> DataLoader[Any]:
        return DataLoader(
            self.dataset(split),
            batch_size=self.batch_size,
            shuffle=split == "train",
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

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
        return self.test_dataloader()


class ImageClassifier(Classifier):
    """A network of torchvision, trained from scratch.

    Args:
        architecture: The name of the network.
        drop_block: The rate of DropBlock in the last stage of a ResNet, see
            :func:`add_drop_block`; 0 for none.
        block_size: The side of DropBlock's squares, in elements of the feature map.
        num_classes: See :class:`Classifier`.
        label_smoothing: See :class:`Classifier`.
        **practices: See :class:`~lightning_practices.mixins.TrainingPractices`.
    """

    def __init__(
        self,
        architecture: str = "resnet18",
        drop_block: float = 0.0,
        block_size: int = 7,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        **practices: Any,
    ) -> None:
        super().__init__(num_classes, label_smoothing, **practices)
        self.save_hyperparameters()
        self.architecture = architecture
        self.drop_block, self.block_size = drop_block, block_size

    @override
    def make_network(self, num_classes: int) -> nn.Module:
        network = architecture_of(self.architecture, num_classes)
        if self.drop_block:
            add_drop_block(network, self.drop_block, self.block_size)
        return network


class TransferImageClassifier(FineTuningMixin, Classifier):
    """A network of torchvision with pretrained weights and a new head.

    Images are standardised by the statistics that the weights were trained with, so the datamodule
    has no ``preprocess``. The weights are loaded when a fit begins, and not for a test or a
    prediction, which take those of a checkpoint.

    Args:
        architecture: The name of the network.
        weights: The name of torchvision's weights, which are downloaded once; or the path of a
            file, see :func:`load_weights`.
        freeze_batch_norm: Whether all batch norms keep their pretrained statistics and weights,
            also those of blocks that are trained.
        num_classes: See :class:`Classifier`.
        label_smoothing: See :class:`Classifier`.
        **practices: See :class:`~lightning_practices.mixins.FineTuningMixin` and
            :class:`~lightning_practices.mixins.TrainingPractices`.
    """

    def __init__(
        self,
        architecture: str = "resnet18",
        weights: str = "DEFAULT",
        freeze_batch_norm: bool = True,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        **practices: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, label_smoothing=label_smoothing, **practices)
        self.save_hyperparameters()
        self.architecture, self.weights = architecture, weights
        self.freeze_batch_norm = freeze_batch_norm

    @override
    def make_network(self, num_classes: int) -> nn.Module:
        self.mean, self.std = normalization(self.architecture, self.weights)
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            network = architecture_of(self.architecture, num_classes)
        else:
            network = pretrained(self.architecture, self.weights, num_classes)
        if self.freeze_batch_norm:
            norms = [n for n, one in network.named_modules() if isinstance(one, _BatchNorm)]
            freeze(network, norms)
        return network

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(functional.normalize(inputs, self.mean, self.std))
