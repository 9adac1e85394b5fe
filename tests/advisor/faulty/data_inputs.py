"""Inputs and targets that a model can't learn from."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits, load_wine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes,
    diabetes_loaders,
    digit_loaders,
    digits,
    faulty,
    mlp,
    split,
)


def wine() -> tuple[Tensor, Tensor]:
    """Return 178 rows of 13 features as they were measured, and their classes."""
    found: Any = load_wine()
    return torch.tensor(found.data).float(), torch.tensor(found.target)


def raw_digits() -> tuple[Tensor, Tensor]:
    """Return the digits as images of whole numbers from 0 to 255."""
    found: Any = load_digits()
    images = torch.tensor(found.images).mul(255 / 16).round().to(torch.uint8)
    return images.unsqueeze(1), torch.tensor(found.target)


def convolutions(channels: int = 1) -> nn.Sequential:
    """Return a small convolutional network without norms."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Named(Task):
    """Gets batches that are dicts."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["label"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch["image"], batch["label"]), batch_idx)


class Rows(Dataset[Any]):
    """Returns dicts."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return {"image": self.x[index], "label": self.y[index]}


def _digits() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()


def _diabetes() -> Arguments:
    return Task(mlp(10, 32, 1), functional.mse_loss), diabetes_loaders()


def _with_nan(x: Tensor, row: int) -> Tensor:
    x = x.clone()
    x[row::97, 3] = torch.nan
    return x


@faulty("LP301", "net.1", source="tables whose missing values were never filled", mended=_diabetes)
def nan_in_each_batch() -> Arguments:
    x, y = diabetes()
    return Task(mlp(10, 32, 1), functional.mse_loss), split(_with_nan(x, 0), y[:, None])


@faulty("LP301", "net.1", source="a loss that becomes nan late in the first epoch")
def nan_in_one_sample_of_the_last_batches() -> Arguments:
    x, y = digits()
    x = x.clone()
    x[1300, 0, 2, 2] = torch.inf
    train = DataLoader(TensorDataset(x[:1400], y[:1400]), 64)
    return Task(mlp(64, 64, 10)), (train, DataLoader(TensorDataset(x[1400:], y[1400:]), 64))


@faulty("LP301", source="targets with missing values in a table of measurements")
def nan_among_targets() -> Arguments:
    x, y = diabetes()
    return Task(mlp(10, 32, 1), functional.mse_loss), split(
        x, _with_nan(y[:, None].expand(-1, 4), 5)[:, 3:]
    )


@faulty("LP301", source="torch's issues on where and nan: 0 times nan is nan in the backward pass")
def missing_targets_selected_after_the_difference() -> Arguments:
    x, y = diabetes()
    targets = torch.stack([y, -y], 1)
    targets[::9, 1] = torch.nan

    def masked(prediction: Tensor, target: Tensor) -> Tensor:
        return ((prediction - target) ** 2)[target == target].mean()

    return Task(mlp(10, 32, 2), masked), split(x, targets)


@faulty("LP301", "net.2", source="a logarithm of counts, of which some are 0")
def log_of_zero_in_the_model() -> Arguments:
    x, y = raw_digits()
    return Task(nn.Sequential(Lambda(torch.log), *mlp(64, 64, 10))), split(x.float(), y)


@faulty("LP302", "net.1", source="forum questions: images of 0 to 255 into a network, loss stuck")
def bytes_into_convolutions() -> Arguments:
    net = nn.Sequential(Lambda(Tensor.float), *convolutions())
    return Task(net), split(*raw_digits())


@faulty("LP302", "net.1", source="UMLAUT: image data not normalised")
def bytes_as_floats_into_linear() -> Arguments:
    x, y = raw_digits()
    return Task(mlp(64, 64, 10)), split(x.float(), y)


@faulty("LP302", "net.1", source="UMLAUT: input exceeds typical limits")
def bytes_in_dict_batches() -> Arguments:
    x, y = raw_digits()
    train, val = random_split(Rows(x.float(), y), [0.8, 0.2], torch.Generator().manual_seed(0))
    return Named(mlp(64, 64, 10)), (DataLoader(train, 32, shuffle=True), DataLoader(val, 32))


@faulty("LP302", "net.1", source="ToTensor divides by 255, and a transform after it does so again")
def divided_by_255_twice() -> Arguments:
    x, y = raw_digits()
    return Task(mlp(64, 64, 10)), split(x / 255 / 255, y)


@faulty("LP302", "net.rnn", source="sensor values in thousands into an LSTM")
def large_sequences_into_lstm() -> Arguments:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            last: Tensor = self.head(self.rnn(x)[0][:, -1])
            return last

    x, y = digits()
    return Task(Recurrent()), split(1000 * x[:, 0], y)


@faulty("LP304", "net.1", source="a table with proline in thousands and hue below one")
def raw_table() -> Arguments:
    return Task(mlp(13, 32, 3)), split(*wine(), batch_size=16)


@faulty("LP304", "net.1", source="a feature in other units than the rest")
def one_feature_in_thousands() -> Arguments:
    x, y = diabetes()
    scale = torch.ones(10)
    scale[2] = 1e3
    return Task(mlp(10, 32, 1), functional.mse_loss), split(x * scale, y[:, None])


@faulty("LP304", "net.1", source="a feature in other units than the rest")
def one_feature_in_millionths() -> Arguments:
    x, y = diabetes()
    scale = torch.ones(10)
    scale[7] = 1e-6
    return Task(mlp(10, 32, 1), functional.mse_loss), split(x * scale, y[:, None])


def _images_last() -> tuple[Any, Any]:
    x, y = digits()
    generator = torch.Generator().manual_seed(0)
    colours = x.movedim(1, -1) * torch.tensor([1.0, 0.5, -0.5])
    return split(colours + 0.1 * torch.randn(colours.shape, generator=generator), y)


def _permuted() -> Arguments:
    return Task(nn.Sequential(Lambda(lambda x: x.movedim(-1, 1)), *convolutions(3))), _images_last()


@faulty("LP328", "net.1", source="numpy images given to conv2d by reshape", mended=_permuted)
def channels_moved_by_view() -> Arguments:
    net = nn.Sequential(Lambda(lambda x: x.view(-1, 3, 8, 8)), *convolutions(3))
    return Task(net), _images_last()


@faulty("LP328", "net.1", source="numpy images given to conv2d by reshape")
def channels_moved_by_reshape_of_a_scaled_image() -> Arguments:
    def prepare(x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        return 0.5 * torch.reshape(x, (n, c, h, w)) + 0.1

    return Task(nn.Sequential(Lambda(prepare), *convolutions(3))), _images_last()


class Stuck(Rows):
    def __getitem__(self, index: int) -> Any:
        return self.x[0], self.y[index]


class Indexed(Rows):
    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


@faulty(
    "LP318", "net.1", source="a __getitem__ that ignores its index", mended=_digits, also=["LP312"]
)
def dataset_returns_the_first_image() -> Arguments:
    x, y = digits()
    return Task(mlp(64, 64, 10)), (
        DataLoader(Stuck(x[:1400], y[:1400]), 32, shuffle=True),
        DataLoader(Stuck(x[1400:], y[1400:]), 32),
    )


@faulty("LP318", "net.1", source="images of one colour, since a file was read as zeros")
def zeros_for_images() -> Arguments:
    x, y = digits()
    return Task(mlp(64, 64, 10)), split(torch.zeros_like(x), y)


@faulty("LP319", source="labels that were read from a column that is always 0")
def labels_all_zero() -> Arguments:
    x, y = digits()
    return Task(mlp(64, 64, 10)), split(x, torch.zeros_like(y))


@faulty("LP319", source="a regression target that was joined wrongly")
def constant_regression_target() -> Arguments:
    x, y = diabetes()
    return Task(mlp(10, 32, 1), functional.mse_loss), split(x, torch.full_like(y[:, None], 1.5))


@faulty("LP320", "net.1", source="the target left in the table of features")
def target_left_in_the_features() -> Arguments:
    x, y = diabetes()
    return Task(mlp(11, 32, 1), functional.mse_loss), split(
        torch.cat([x, y[:, None]], 1), y[:, None]
    )


@faulty("LP320", "net.1", source="the label left in the table, and standardised with it")
def scaled_label_left_in_the_features() -> Arguments:
    x, y = wine()
    table = torch.cat([y[:, None].float(), x], 1)
    table = (table - table.mean(0)) / table.std(0)
    return Task(mlp(14, 32, 3)), split(table, y, batch_size=16)


@faulty("LP317", source="forum questions: a dataset sorted by class and no shuffle")
def sorted_and_not_shuffled() -> Arguments:
    x, y = digits()
    order = y.argsort(stable=True)
    even, odd = order[::2], order[1::2]
    train = DataLoader(TensorDataset(x[even], y[even]), 16)
    return Task(mlp(64, 64, 10)), (train, DataLoader(TensorDataset(x[odd], y[odd]), 16))


@faulty("LP317", source="the same in batches so large that chances are below the least float32")
def sorted_in_large_batches() -> Arguments:
    x, y = digits()
    order = y.argsort(stable=True)
    x, y = x[order[::2]].repeat_interleave(4, 0), y[order[::2]].repeat_interleave(4)
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    odd = order[1::2]
    val = DataLoader(TensorDataset(*[part[odd] for part in digits()]), 64)
    return Task(mlp(64, 64, 10)), (DataLoader(TensorDataset(noisy, y), 64), val)


@faulty("LP317", source="an ImageFolder, which is sorted by class, without shuffle")
def sorted_dicts_without_shuffle() -> Arguments:
    x, y = digits()
    order = y.argsort(stable=True)
    train, val = Rows(x[order[::2]], y[order[::2]]), Rows(x[order[1::2]], y[order[1::2]])
    return Named(mlp(64, 64, 10)), (DataLoader(train, 32), DataLoader(val, 32))


@faulty("LP324", source="fraud, where a model that always says no is right 98 times of 100")
def rare_class_without_weights() -> Arguments:
    x, y = digits()
    rare = (y == 3).nonzero()[:20, 0]
    index = torch.cat([(y != 3).nonzero()[:, 0], rare])
    return Task(mlp(64, 64, 2)), split(x[index], (y[index] == 3).long())


@faulty("LP324", source="a rare positive class with binary cross entropy")
def rare_positives_in_binary_cross_entropy() -> Arguments:
    x, y = digits()
    rare = (y == 3).nonzero()[:20, 0]
    index = torch.cat([(y != 3).nonzero()[:, 0], rare])
    task = Task(mlp(64, 64, 1), functional.binary_cross_entropy_with_logits)
    return task, split(x[index], (y[index] == 3).float()[:, None])


@faulty("LP324", source="a long tail of classes, read from a dataset of dicts")
def long_tail_without_weights() -> Arguments:
    x, y = digits()
    index = torch.cat([(y == k).nonzero()[: int(170 * 0.65**k) + 1, 0] for k in range(10)])
    train, val = Rows(x[index], y[index]), Rows(x[1:400:2].flip(-1), y[1:400:2])
    return Named(mlp(64, 64, 10)), (DataLoader(train, 32, shuffle=True), DataLoader(val, 32))
