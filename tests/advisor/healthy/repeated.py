"""Lists whose entries share what has no weights, or a part of them."""

import copy
from typing import Any

import torch
from torch import nn

from tests.advisor.faulty.repeated import Stack
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy


@healthy
def shared_activation_and_dropout() -> Arguments:
    activation, dropout = nn.PReLU(), nn.Dropout(0.1)
    return Task(
        nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), activation, dropout, nn.Linear(64, 64), activation,
            dropout, nn.Linear(64, 10),
        )
    ), digit_loaders()  # fmt: skip


@healthy
def copies_of_a_layer() -> Arguments:
    layer = nn.Linear(32, 32)
    return Task(Stack(nn.ModuleList(copy.deepcopy(layer) for _ in range(3)))), digit_loaders()


class WithShift(nn.Module):
    """A block that adds what all blocks share, as the position bias of T5 is shared."""

    def __init__(self, shift: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        self.shift = shift

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x) + self.shift(torch.zeros(1, dtype=torch.long))


@healthy
def blocks_that_share_a_small_part() -> Arguments:
    shift = nn.Embedding(4, 32)
    return Task(Stack(nn.ModuleList(WithShift(shift) for _ in range(3)))), digit_loaders()
