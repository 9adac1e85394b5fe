"""Samples of a batch that influence each other in eval mode."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, diabetes_loaders, digit_loaders, faulty, mlp


class Rows(nn.Module):
    """Reads an image row by row.

    Args:
        batch_first: Whether the recurrent layer expects the batch first.
    """

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 32, batch_first=batch_first)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x.squeeze(1))[0][:, -1])


def _rows() -> Arguments:
    return Task(Rows()), digit_loaders()


@faulty("LP113", "net", mended=_rows, source="Karpathy, 2019: view in place of transpose")
def view_in_place_of_transpose() -> Arguments:
    class Viewed(Rows):
        def forward(self, x: Tensor) -> Any:
            x = x.squeeze(1)
            return self.head(self.rnn(x.view(8, len(x), 8))[0][-1])

    return Task(Viewed(batch_first=False)), digit_loaders()


@faulty("LP113", "net", mended=_rows, source="questions: view of a fixed batch size")
def view_of_a_fixed_batch_size() -> Arguments:
    class Fixed(Rows):
        def forward(self, x: Tensor) -> Any:
            start = torch.zeros(1, 48, 32)
            return self.head(self.rnn(x.reshape(8, 48, 8), start)[0][-1])

    train, _ = digit_loaders(batch_size=48)
    return Task(Fixed(batch_first=False)), train


@faulty(
    "LP113", "net", mended=_rows, source="questions: sequence first, flattened as if batch first"
)
def sequence_first_is_flattened() -> Arguments:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(8, 16), nn.Linear(128, 10)

        def forward(self, x: Tensor) -> Any:
            h = functional.relu(self.lift(x.squeeze(1).transpose(0, 1)))
            return self.head(h.reshape(h.shape[1], -1))

    return Task(Flat()), digit_loaders()


@faulty("LP113", "net", mended=_rows, source="questions: rows merged with samples, split wrongly")
def rows_are_split_in_the_wrong_order() -> Arguments:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(8, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Any:
            h = functional.relu(self.lift(x.reshape(-1, 8)))
            return self.head(h.view(8, len(x), 16).mean(dim=0))

    return Task(Merged()), digit_loaders()


@faulty("LP113", "net.rnn", mended=_rows, source="questions: LSTM without batch_first=True")
def recurrent_layer_over_the_batch() -> Arguments:
    return Task(Rows(batch_first=False)), digit_loaders()


@faulty("LP113", "net.1", mended=_rows, source="questions: TransformerEncoderLayer's batch_first")
def attention_over_the_batch() -> Arguments:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    net = nn.Sequential(nn.Flatten(1, 2), layer, mlp(64, 10))
    return Task(net), digit_loaders()


@faulty("LP113", "net.rnn", source="questions: an LSTM of rows of a table, without a time")
def table_as_a_sequence_of_its_samples() -> Arguments:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(10, 32), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.rnn(x)[0])

    return Task(Table(), functional.mse_loss), diabetes_loaders()


class Positions(nn.Module):
    """The position encoding of PyTorch's tutorial, which expects time first."""

    pe: Tensor

    def __init__(self, width: int = 8, length: int = 500) -> None:
        super().__init__()
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angles = torch.arange(length).unsqueeze(1) * rates
        self.register_buffer("pe", torch.stack([angles.sin(), angles.cos()], -1).view(-1, 1, width))

    def forward(self, x: Tensor) -> Any:
        return x + self.pe[: x.size(0)]


def _encoder(before: nn.Module) -> Arguments:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return Task(nn.Sequential(nn.Flatten(1, 2), before, layer, mlp(64, 10))), digit_loaders()


@faulty("LP119", "net.1", source="questions about the tutorial's PositionalEncoding, batch first")
def positions_along_the_batch() -> Arguments:
    return _encoder(Positions())


@faulty("LP119", "net.1", source="questions about learned positions of x.size(0)")
def learned_positions_along_the_batch() -> Arguments:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 8)

        def forward(self, x: Tensor) -> Any:
            return x + self.table(torch.arange(x.size(0))).unsqueeze(1)

    return _encoder(Learned())
