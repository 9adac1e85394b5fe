"""Datasets of pictures: masks that stay, reshapes, and weights of a sampler."""

from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from tests.advisor.programs import Arguments, Task, digit_loaders, digits, faulty, mlp


class Pictures(Dataset[Any]):
    """Digits and what is made of them."""

    def __init__(self) -> None:
        self.images, self.labels = digits()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.sample(self.images[index], self.labels[index])

    def sample(self, image: Tensor, label: Tensor) -> Any:
        raise NotImplementedError


class Ink(Pictures):
    flip = v2.RandomHorizontalFlip()

    def sample(self, image: Tensor, label: Tensor) -> Any:
        image, mask = self.flip(image, Mask((image[0] > 0).long()))
        return image, mask.as_subclass(Tensor)


def segmenter() -> Task:
    return Task(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)))


def shuffled(dataset: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 64, shuffle=True, drop_last=True)


def _joint() -> Arguments:
    images = digits()[0]
    masks = (images[:, 0] > 0).long()
    return segmenter(), (shuffled(Ink()), DataLoader(TensorDataset(images, masks), 64))


@faulty("LP343", source="a transform of images in a segmentation dataset", mended=_joint)
def image_flipped_alone() -> Arguments:
    class Alone(Ink):
        flip = v2.Compose([v2.RandomVerticalFlip(), v2.GaussianNoise(sigma=0.05, clip=False)])

        def sample(self, image: Tensor, label: Tensor) -> Any:
            return self.flip(image), (image[0] > 0).long()

    return segmenter(), shuffled(Alone())


@faulty("LP343", source="a coin for the image, and none for the mask")
def coin_for_image_alone() -> Arguments:
    class Alone(Ink):
        def sample(self, image: Tensor, label: Tensor) -> Any:
            mask = (image[0] > 0).long()
            return (image.flip(-1) if torch.rand(()) < 0.5 else image), mask

    return segmenter(), shuffled(Alone())


@faulty("LP343", source="one random transform that is called twice")
def two_coins() -> Arguments:
    class Apart(Ink):
        def sample(self, image: Tensor, label: Tensor) -> Any:
            return self.flip(image), self.flip((image[0] > 0).long())

    return segmenter(), shuffled(Apart())


@faulty("LP343", source="a turn of the mask that is drawn anew")
def mask_turned_otherwise() -> Arguments:
    class Turned(Ink):
        def sample(self, image: Tensor, label: Tensor) -> Any:
            turns = torch.randint(4, (2,)).tolist()
            mask = (image[0] > 0).long().rot90(turns[1])
            return image.rot90(turns[0], (-2, -1)) + 0.1 * torch.randn(8, 8), mask

    return segmenter(), shuffled(Turned())


@faulty("LP343", source="a mask that is flipped in place of its image")
def mask_flipped_alone() -> Arguments:
    class Alone(Ink):
        def sample(self, image: Tensor, label: Tensor) -> Any:
            wide = nn.functional.interpolate(image[None], scale_factor=6)[0]
            mask = (wide[0] > 0).long()
            return wide, mask.flip(-2) if torch.rand(()) < 0.5 else mask

    return segmenter(), shuffled(Alone())


class Colours(Pictures):
    """Digits in three colours, as numpy keeps images: height, width, channels."""

    def sample(self, image: Tensor, label: Tensor) -> Any:
        return self.channels_first(image[0, :, :, None] * torch.tensor([1.0, 0.5, 0.2])), label

    def channels_first(self, image: Tensor) -> Tensor:
        return image.permute(2, 0, 1)


@faulty("LP328", source="view for channels first in a dataset")
def view_in_dataset() -> Arguments:
    class Viewed(Colours):
        def channels_first(self, image: Tensor) -> Tensor:
            return image.view(3, 8, 8)

    return Task(mlp(192, 32, 10)), shuffled(Viewed())


@faulty("LP328", source="torch.reshape in a transform")
def reshape_in_transform() -> Arguments:
    class Reshaped(Colours):
        def channels_first(self, image: Tensor) -> Tensor:
            return torch.reshape(image, (3, *image.shape[:2]))

    return Task(mlp(192, 32, 10)), shuffled(Reshaped())


@cache
def photographs() -> tuple[Any, Tensor]:
    """Return 600 pieces of two photographs, shape (600, 32, 32, 3) of bytes, and which they are."""
    found: Any = load_sample_images()
    places = np.random.default_rng(0).integers(0, 300, (600, 2))
    pieces = [
        found.images[i % 2][y : y + 64 : 2, x : x + 64 : 2] for i, (y, x) in enumerate(places)
    ]
    return np.stack(pieces), torch.arange(600) % 2


class Photographs(Dataset[Any]):
    """The pieces, as numpy loads them."""

    def __init__(self) -> None:
        self.images, self.labels = photographs()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.channels_first(self.images[index]).astype(np.float32) / 127.5 - 1
        return torch.from_numpy(image), self.labels[index]

    def channels_first(self, image: Any) -> Any:
        return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def of_colours() -> Task:
    return Task(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), mlp(128, 2)
        )
    )


def _moved() -> Arguments:
    return of_colours(), (shuffled(Photographs()), DataLoader(Photographs(), 64))


@faulty("LP328", source="numpy's reshape of images in a dataset", mended=_moved)
def reshape_of_numpy() -> Arguments:
    class Reshaped(Photographs):
        def channels_first(self, image: Any) -> Any:
            return image.reshape(3, 32, 32)

    return of_colours(), shuffled(Reshaped())


@faulty("LP328", source="rows of CIFAR, which have channels first, read as channels last")
def rows_of_channels_first_read_as_last() -> Arguments:
    rows = np.moveaxis(photographs()[0], -1, 1).reshape(600, -1)
    images = torch.from_numpy(rows.reshape(-1, 32, 32, 3).copy()).permute(0, 3, 1, 2)
    return of_colours(), shuffled(TensorDataset(images.float() / 127.5 - 1, photographs()[1]))


@faulty("LP328", source="all images reshaped at once, and standardised afterwards")
def reshape_before_the_dataset() -> Arguments:
    images = torch.from_numpy(photographs()[0].reshape(-1, 3, 32, 32).copy()).float()
    images = (images - images.mean((0, 2, 3), True)) / images.std((0, 2, 3), keepdim=True)
    return of_colours(), shuffled(TensorDataset(images, photographs()[1]))


def weighted(weights: Tensor) -> DataLoader[Any]:
    sampler = WeightedRandomSampler(weights.tolist(), len(digits()[1]))
    return DataLoader(TensorDataset(*digits()), 64, sampler=sampler, drop_last=True)


def _of_samples() -> Arguments:
    y = digits()[1]
    return Task(mlp(64, 32, 10)), (weighted((1 / y.bincount())[y]), digit_loaders()[1])


@faulty("LP344", source="weights of the classes for a weighted sampler", mended=_of_samples)
def weights_of_classes() -> Arguments:
    return Task(mlp(64, 32, 10)), weighted(1 / digits()[1].bincount())


@faulty("LP344", source="weights of two classes, balanced by hand")
def two_weights() -> Arguments:
    x, y = digits()
    sampler = WeightedRandomSampler(torch.tensor([0.2, 0.8]), 1000)
    data = TensorDataset(x, (y > 7).long())
    return Task(mlp(64, 32, 2)), DataLoader(data, batch_size=50, sampler=sampler)
