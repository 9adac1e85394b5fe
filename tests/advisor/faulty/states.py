"""Recurrent states that go on from one batch of shuffled sequences to the next."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.programs import Arguments, Task, faulty


def waves(*, shuffle: bool = True) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return loaders of sequences of one of three frequencies, with the frequency's number."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(3, (576,), generator=draw)
    time = torch.arange(12.0)[None, :, None]
    phase = 6.28 * torch.rand(576, 1, 2, generator=draw)
    x = torch.sin((0.4 + 0.2 * y)[:, None, None] * time + phase)
    x = x + 0.2 * torch.randn(x.shape, generator=draw)
    train, val = (TensorDataset(x[part], y[part]) for part in (slice(512), slice(512, None)))
    return DataLoader(train, 32, shuffle=shuffle, drop_last=True), DataLoader(val, 32)


class Kept(nn.Module):
    """A GRU that goes on from its last state, or from none."""

    def __init__(self, *, is_kept: bool = True) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 16, batch_first=True)
        self.head = nn.Linear(16, 3)
        self.is_kept = is_kept
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, hidden = self.gru(x, self.hidden if self.is_kept else None)
        self.hidden = hidden.detach()
        return self.head(out.mean(dim=1))


@faulty("LP151", "net.gru", source="self.hidden of a GRU, detached and passed on")
def state_of_a_gru() -> Arguments:
    return Task(Kept()), waves()


@faulty("LP151", "net.cell", source="a state in a buffer, moved by a cell")
def buffer_moved_by_a_cell() -> Arguments:
    class Cells(nn.Module):
        state: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTMCell(2, 16), nn.Linear(16, 3)
            self.register_buffer("state", torch.zeros(32, 16))
            self.memory = [torch.zeros(32, 16)]

        def forward(self, x: Tensor) -> Tensor:
            h, c = self.state[: len(x)].clone(), self.memory[0][: len(x)]
            for t in range(x.shape[1]):
                h, c = self.cell(x[:, t], (h, c))
            self.state[: len(x)] = h.detach()
            self.memory = [c.detach()]
            return self.head(h)

    return Task(Cells()), waves()


@faulty("LP151", source="a recurrent layer written out, whose state stays")
def own_recurrence() -> Arguments:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.go_on, self.head = (
                nn.Linear(2, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 3),
            )  # fmt: skip
            self.h = torch.zeros(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            h = self.h
            for step in x.unbind(dim=1):
                h = torch.tanh(self.read(step) + self.go_on(h))
            self.h = h.detach()
            return self.head(h)

    return Task(Own()), waves()
