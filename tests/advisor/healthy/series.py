"""Sequences that resemble the faulty ones."""

import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset, random_split

from tests.advisor.faulty.series import WIDTH, Rows, Windows, forecast, loaders, series
from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy


@healthy
def ends_of_both_directions() -> Arguments:
    class Ends(Rows):
        def summary(self, out: Tensor) -> Tensor:
            return torch.cat([out[:, -1, :16], out[:, 0, 16:]], dim=-1)

    return Task(Ends()), digit_loaders()


@healthy
def first_and_last_output() -> Arguments:
    class Both(Rows):
        def __init__(self) -> None:
            super().__init__(nn.GRU)
            self.head = nn.Linear(64, 10)

        def summary(self, out: Tensor) -> Tensor:
            return torch.cat([out[:, 0], out[:, -1]], dim=-1)

    return Task(Both()), digit_loaders()


@healthy
def hidden_states() -> Arguments:
    class Hidden(Rows):
        def forward(self, x: Tensor) -> Tensor:
            _, (h, _) = self.rnn(x.squeeze(1))
            return self.head(torch.cat([h[-2], h[-1]], dim=-1))

    return Task(Hidden()), digit_loaders()


@healthy
def last_output_queries_all() -> Arguments:
    class Attends(Rows):
        def summary(self, out: Tensor) -> Tensor:
            weights = torch.softmax((out @ out[:, -1, :, None]) / 6, dim=1)
            return (weights * out).sum(1)

    return Task(Attends()), digit_loaders()


@healthy
def windows_split_by_time() -> Arguments:
    windows = Windows(series())
    train, val = range(300), range(300 + WIDTH, len(windows))
    return forecast(), loaders(Subset(windows, train), Subset(windows, val))


@healthy
def windows_apart_split_at_random() -> Arguments:
    x = digits()[0].flatten()[:8192].unfold(0, WIDTH + 1, WIDTH + 1)
    windows = TensorDataset(x[:, :-1].contiguous(), x[:, -1:].contiguous())
    generator = torch.Generator().manual_seed(0)
    return forecast(), loaders(*random_split(windows, [0.8, 0.2], generator))
