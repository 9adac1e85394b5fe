"""Data that may be better, and steps that may be faster: what hints are about."""

import time
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.faulty.data_inputs import Indexed
from tests.advisor.healthy.data_inputs import bytes_into_convolution_and_batch_norm
from tests.advisor.healthy.data_inputs import principal_components as components
from tests.advisor.healthy.data_splits import four_images_of_many_positions, samples_made_on_the_fly
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    digits,
    faulty,
    mlp,
)


@faulty("LP303", "net.0", source="images of bytes, whose scale the first batch norm mends")
def bytes_before_batch_norm() -> Arguments:
    return bytes_into_convolution_and_batch_norm()


@faulty("LP305", "net.1", source="principal components that were not whitened")
def components_that_are_not_whitened() -> Arguments:
    module, loaders = components()[:2]
    tables = [loader.dataset.tensors for loader in loaders]
    scale = torch.logspace(0, -3, 60)
    data: Any = [Indexed(x * scale, y) for x, y in tables]
    return module, tuple(DataLoader(one, 64, shuffle=one is data[0]) for one in data)


@faulty("LP313", source="Kaufman et al. 2012: scaled, then split")
def scaled_before_the_split() -> Arguments:
    return Task(mlp(10, 32, 1), functional.mse_loss), diabetes_loaders()


@faulty("LP315", source="a validation dataset that draws its samples")
def validation_made_on_the_fly() -> Arguments:
    return samples_made_on_the_fly()


@faulty("LP316", source="Lightning's warning about shuffle in the validation loader")
def shuffled_validation() -> Arguments:
    train, val = digit_loaders()
    return Task(mlp(64, 64, 10)), (train, DataLoader(val.dataset, 64, shuffle=True))


@faulty("LP323", "net.1", source="Wu and He 2018: four images a device")
def batch_norm_of_four_images() -> Arguments:
    return four_images_of_many_positions()


@faulty("LP326", source="Karpathy 2019, a recipe for training neural networks")
def no_validation() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()[0]


class _Slow(Indexed):
    def __getitem__(self, index: int) -> Any:
        time.sleep(0.002)
        return super().__getitem__(index)


@faulty("LP704", source="a GPU at 20 % while images are decoded in the main process")
def slow_dataset() -> Arguments:
    x, y = digits()
    data: Any = _Slow(x[:1400], y[:1400])
    val: Any = Indexed(x[1400:], y[1400:])
    return Task(mlp(64, 64, 10)), (DataLoader(data, 64, shuffle=True), DataLoader(val, 64))
