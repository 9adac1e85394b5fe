"""Lists whose entries are the same layer."""

from typing import Any

from torch import Tensor, nn

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty


class Stack(nn.Module):
    """Residual blocks between two linear layers."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = blocks

    def forward(self, x: Tensor) -> Any:
        x = self.first(x.flatten(1)).relu()
        for block in self.blocks:
            x = x + block(x).relu()
        return self.last(x)


@faulty("LP561", "net.blocks", source="nn.ModuleList([layer] * 3)")
def one_layer_three_times() -> Arguments:
    return Task(Stack(nn.ModuleList([nn.Linear(32, 32)] * 3))), digit_loaders()


@faulty("LP561", "net", source="nn.Sequential(*[layer, activation] * 3)")
def one_layer_repeated_in_a_sequence() -> Arguments:
    repeated = [nn.Linear(32, 32), nn.ReLU()] * 3
    return Task(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), *repeated, nn.Linear(32, 10))
    ), digit_loaders()


@faulty("LP561", "net.blocks", source="blocks of their own around the same layers")
def blocks_around_the_same_layers() -> Arguments:
    inner, outer = nn.Linear(32, 64), nn.Linear(64, 32)
    blocks = [nn.Sequential(nn.LayerNorm(32), inner, nn.GELU(), outer) for _ in range(3)]
    return Task(Stack(nn.ModuleList(blocks))), digit_loaders()
