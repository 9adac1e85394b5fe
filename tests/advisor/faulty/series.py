"""Sequences: the end of a bidirectional network, and windows of a series in two splits."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split

from tests.advisor.programs import Arguments, Task, digit_loaders, digits, faulty, mlp

WIDTH = 12


class Rows(nn.Module):
    """Reads a digit row by row in both directions."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, batch_first: bool = True) -> None:
        super().__init__()
        self.rnn = kind(8, 16, bidirectional=True, batch_first=batch_first)  # type: ignore[call-arg]
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.squeeze(1))
        return self.head(self.summary(out))

    def summary(self, out: Tensor) -> Tensor:
        return out.mean(1)


def _mean() -> Arguments:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)

    return Task(Rows(), optimizer=optimizer), digit_loaders()


@faulty(
    "LP262", "net.rnn", source="out[:, -1] kept when the LSTM became bidirectional", mended=_mean
)
def last_output() -> Arguments:
    class Last(Rows):
        def summary(self, out: Tensor) -> Tensor:
            return out[:, -1, :]

    return Task(Last()), digit_loaders()


@faulty("LP262", "net.rnn", source="a bidirectional GRU with time first, read at its last step")
def last_output_time_first() -> Arguments:
    class Last(Rows):
        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.rnn(x.squeeze(1).transpose(0, 1))
            return self.head(out[-1])

    return Task(Last(nn.GRU, batch_first=False)), digit_loaders()


class Windows(Dataset[Any]):
    """Windows of a series with the value that follows."""

    def __init__(self, series: Tensor) -> None:
        self.series = series

    def __len__(self) -> int:
        return len(self.series) - WIDTH

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        end = index + WIDTH
        return self.series[index:end], self.series[end : end + 1]


def loaders(train: Any, val: Any) -> Any:
    return DataLoader(train, 32, shuffle=True), DataLoader(val, 32)


def series() -> Tensor:
    """Return the pixels of nine digits, one after the other."""
    return digits()[0].flatten()[:576]


def forecast() -> Task:
    return Task(mlp(WIDTH, 32, 1), functional.mse_loss)


def _by_time() -> Arguments:
    windows = Windows(series())
    train, val = range(300), range(300 + WIDTH, len(windows))
    return forecast(), loaders(Subset(windows, train), Subset(windows, val))


@faulty("LP341", source="random_split of a dataset of windows", mended=_by_time)
def windows_split_at_random() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    return forecast(), loaders(*random_split(Windows(series()), [0.8, 0.2], generator))


@faulty("LP341", source="unfold with a stride, then a permutation of the windows")
def strided_windows_permuted() -> Arguments:
    x = series().unfold(0, WIDTH + 1, 3)
    windows = TensorDataset(x[:, :-1].contiguous(), x[:, -1:].contiguous())
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(1)).tolist()
    return forecast(), loaders(Subset(windows, order[28:]), Subset(windows, order[:28]))
