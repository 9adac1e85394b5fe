"""Splits that overlap or differ, and batches too small for batch norm."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)
from torchvision.transforms import v2 as transforms

from tests.advisor.faulty.data_inputs import Indexed, Lambda, raw_digits
from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes,
    diabetes_loaders,
    digit_loaders,
    digits,
    faulty,
    mlp,
    split,
)


@faulty("LP311", "net.1", source="Normalize in the train transform alone")
def validation_not_normalised() -> Arguments:
    x, y = digits()
    raw = 0.14 + 0.3 * x
    train, _ = split(x, y)
    return Task(mlp(64, 64, 10)), (train, split(raw, y)[1])


@faulty("LP311", "net.1", source="ToTensor in the train transform alone")
def validation_of_bytes() -> Arguments:
    x, y = raw_digits()
    train, _ = split(x / 255, y)
    return Task(mlp(64, 64, 10)), (train, split(x.float(), y)[1])


class Transformed(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor, transform: Any) -> None:
        self.x, self.y, self.transform = x, y, transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.x[index]), int(self.y[index])


_PLAIN = transforms.Compose([transforms.ToDtype(torch.float32, scale=True)])
_NORMALISED = transforms.Compose([*_PLAIN.transforms, transforms.Normalize([0.5], [0.5])])
_AUGMENTED = transforms.Compose(
    [transforms.RandomAffine(10, (0.1, 0.1)), transforms.RandomErasing(), *_PLAIN.transforms]
)


@faulty("LP311", "net.0", source="Normalize(0.5, 0.5) in the train transform alone")
def validation_without_normalize_of_halves() -> Arguments:
    x, y = raw_digits()
    return Task(cnn()), (
        DataLoader(Transformed(x[:1400], y[:1400], _NORMALISED), 32, shuffle=True),
        DataLoader(Transformed(x[1400:], y[1400:], _PLAIN), 32),
    )


@faulty("LP311", "net.1", source="a scaler that transforms the train table alone")
def table_scaled_in_training_alone() -> Arguments:
    x, y = diabetes()
    raw = x * torch.linspace(1, 30, 10) + 40
    train, _ = diabetes_loaders()
    return Task(mlp(10, 32, 1), functional.mse_loss), (train, split(raw, y[:, None])[1])


@faulty("LP311", "net.1", source="a division by 255 in training_step that validation_step lacks")
def scaled_in_the_training_step() -> Arguments:
    class Uneven(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return super().training_step((x.float() / 255, y), batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            super().validation_step((x.float(), y), batch_idx)

    return Uneven(mlp(64, 64, 10)), split(*raw_digits())


@faulty("LP312", source="validation on the train dataset")
def the_same_dataset_twice() -> Arguments:
    data = TensorDataset(*digits())
    return Task(mlp(64, 64, 10)), (DataLoader(data, 64, shuffle=True), DataLoader(data, 64))


@faulty("LP312", source="indices of a split that overlap by a slip of slices")
def overlapping_indices() -> Arguments:
    data = Indexed(*digits())
    train, val = Subset(data, range(1500)), Subset(data, range(1300, len(data)))
    return Task(mlp(64, 64, 10)), (DataLoader(train, 64, shuffle=True), DataLoader(val, 64))


@faulty("LP312", source="two random splits of one dataset with different seeds")
def split_twice() -> Arguments:
    data = TensorDataset(*digits())
    train, _ = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    _, val = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(1))
    return Task(mlp(64, 64, 10)), (DataLoader(train, 64, shuffle=True), DataLoader(val, 64))


@faulty("LP312", source="samplers over one dataset that overlap")
def overlapping_samplers() -> Arguments:
    data = Indexed(*digits())
    train, val = SubsetRandomSampler(range(1600)), SubsetRandomSampler(range(1400, 1797))
    return Task(mlp(64, 64, 10)), (
        DataLoader(data, 64, sampler=train), DataLoader(data, 64, sampler=val)
    )  # fmt: skip


@faulty("LP312", source="a minority class repeated before the split")
def oversampled_before_the_split() -> Arguments:
    x, y = diabetes()
    rare = (y > 1).nonzero()[:, 0].repeat(6)
    index = torch.cat([torch.arange(len(x)), rare])
    task = Task(mlp(10, 32, 1), functional.binary_cross_entropy_with_logits)
    return task, split(x[index], (y[index] > 1).float()[:, None])


@faulty("LP314", source="random_split of an augmented dataset, whose validation part keeps it")
def split_of_an_augmented_dataset() -> Arguments:
    data = Transformed(*raw_digits(), _AUGMENTED)
    train, val = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    return Task(cnn()), (DataLoader(train, 32, shuffle=True), DataLoader(val, 32))


@faulty("LP314", source="the train transform given to the validation dataset")
def augmented_validation_dataset() -> Arguments:
    x, y = raw_digits()
    return Task(cnn()), (
        DataLoader(Transformed(x[:1400], y[:1400], _AUGMENTED), 32, shuffle=True),
        DataLoader(Transformed(x[1400:], y[1400:], _AUGMENTED), 32),
    )


@faulty("LP314", source="noise added to all samples of a dataset that is split afterwards")
def noise_in_a_split_dataset() -> Arguments:
    x, y = digits()
    data = Transformed(x, y, lambda image: image + 0.3 * torch.randn(1, 8, 8))
    train, val = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    return Task(cnn()), (DataLoader(train, 32, shuffle=True), DataLoader(val, 32))


@faulty("LP327", source="drop_last with a validation split smaller than a batch")
def empty_validation_loader() -> Arguments:
    x, y = digits()
    train, _ = digit_loaders()
    val = DataLoader(TensorDataset(x[:30], y[:30]), 64, drop_last=True)
    return Task(mlp(64, 64, 10)), (train, val)


def _normed_mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


def _without_rest() -> Arguments:
    x, y = digits()
    train = DataLoader(TensorDataset(x[:1281], y[:1281]), 64, shuffle=True, drop_last=True)
    return Task(_normed_mlp()), (train, digit_loaders()[1])


@faulty(
    "LP321",
    "net.2",
    mended=_without_rest,
    also=["LP312"],
    source="ValueError: expected more than 1 value per channel, at the end of an epoch",
)
def last_batch_of_one_sample() -> Arguments:
    x, y = digits()
    train = DataLoader(TensorDataset(x[:1281], y[:1281]), 64, shuffle=True)
    return Task(_normed_mlp()), (train, DataLoader(TensorDataset(x[1300:], y[1300:]), 64))


@faulty("LP321", "net.1.2", source="the same with the data in a datamodule, in a submodule")
def last_batch_of_one_sample_of_a_datamodule() -> Arguments:
    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            x, y = digits()
            return DataLoader(TensorDataset(x[:1025], y[:1025]), 32, shuffle=True, num_workers=2)

        def val_dataloader(self) -> Any:
            x, y = digits()
            return DataLoader(TensorDataset(x[1100:], y[1100:]), 32)

    return Task(nn.Sequential(Lambda(lambda x: 2 * x), _normed_mlp())), Data()


@faulty("LP322", "net.2", source="batches of 4 with batch norm after a linear layer")
def batch_norm_of_four_samples() -> Arguments:
    return Task(_normed_mlp()), digit_loaders(4)


@faulty("LP322", "net.1", "net.4", source="Wu and He 2018: two images a device")
def batch_norm_of_two_images() -> Arguments:
    return Task(cnn()), digit_loaders(2)


@faulty("LP322", "net.1", "net.4", source="Wu and He 2018: one image a device, on 4 devices")
def batch_norm_of_one_image_on_several_devices() -> Arguments:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    return Task(cnn()), digit_loaders(1), trainer
