"""Train a ResNet on a folder of images, from one YAML file: all practices, of training and of data.

    python examples/image_folder.py fit --config examples/image_folder.yaml
    python examples/image_folder.py test --config examples/image_folder.yaml --ckpt_path PATH

``data.root`` is a folder with the folders ``train`` and ``val``, and ``test`` if the test is not to
be of ``val``. They hold a folder of images for each class, as torchvision's ``ImageFolder`` reads
them. If ``data.root`` is missing, the script fills it with scikit-learn's digits as PNG files. Any
option can be set on the command line too, such as ``--data.root=photos
--model.architecture=resnet50``; ``fit --help`` lists all of them. With the digits and the committed
file a fit takes a few minutes on a CPU.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import ImageFolder
from torchvision.models import get_model
from torchvision.transforms import v2
from typing_extensions import override

from lightning_practices.data import hard_targets
from lightning_practices.mixins import DataPractices, TrainingPractices


class Classifier(TrainingPractices, LightningModule):
    """A classifier of images.

    Args:
        architecture: Name of a model of torchvision.
        num_classes: Number of classes.
        label_smoothing: The share of the target that goes to all classes.
        **practices: See ``TrainingPractices``.
    """

    def __init__(
        self,
        architecture: str = "resnet18",
        num_classes: int = 10,
        label_smoothing: float = 0.0,
        **practices: Any,
    ) -> None:
        super().__init__(**practices)
        self.save_hyperparameters()
        self.network = get_model(architecture, num_classes=num_classes)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy(logits, hard_targets(batch[1]))
        self.log("val_loss", self.loss(logits, batch[1]), prog_bar=True)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.accuracy(self(batch[0]), batch[1])
        self.log("test_accuracy", self.accuracy)

    @override
    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).softmax(1)  # type: ignore[no-any-return]


class ImageFolders(DataPractices, LightningDataModule):
    """Images in folders, resized and cropped to one size.

    Args:
        root: Folder with the folders ``train`` and ``val``.
        image_size: Edge of the images in pixels.
        batch_size: Images of a batch.
        num_workers: Processes that load images.
        **practices: See ``DataPractices``.
    """

    def __init__(
        self,
        root: Path,
        image_size: int = 224,
        batch_size: int = 32,
        num_workers: int = 0,
        **practices: Any,
    ) -> None:
        super().__init__(**practices)
        self.root, self.batch_size, self.num_workers = Path(root), batch_size, num_workers
        to_float = v2.ToDtype(torch.float32, scale=True)
        self.transform = v2.Compose(
            [v2.ToImage(), v2.Resize(image_size), v2.CenterCrop(image_size), to_float]
        )
        if not self.root.exists():
            write_digits(self.root)
        self.num_classes = len(ImageFolder(self.root / "train").classes)

    def _loader(self, split: str) -> DataLoader[Any]:
        return DataLoader(
            ImageFolder(self.root / split, self.transform),
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
        return self._loader("test" if (self.root / "test").exists() else "val")

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()


def write_digits(root: Path) -> None:
    """Write scikit-learn's digits as images of 8 x 8 pixels, each fifth one for validation."""
    images, labels = load_digits(return_X_y=True)
    for place, (pixels, label) in enumerate(zip(images.reshape(-1, 8, 8), labels, strict=True)):
        folder = root / ("train" if place % 5 else "val") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9375).astype("uint8")).save(folder / f"{place:04}.png")


class Cli(LightningCLI):
    """The command line: the model gets the number of classes of the data."""

    @override
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")


def main(args: list[str] | None = None) -> Cli:
    """Run the command line."""
    return Cli(
        Classifier,
        ImageFolders,
        args=args,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"description": __doc__.splitlines()[0] if __doc__ else None},
    )


if __name__ == "__main__":
    main()
