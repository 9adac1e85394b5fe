"""Masks on several processes: torch's generator decides, so what its seeds say of each."""

import math

import torch
from torch import Tensor

from lightning_kernels import drop_block2d, dropout, dropout2d, stochastic_depth
from tests import processes

SEEDS = (7, 8)


def masks(seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    x = torch.ones(64, 32, 4, 4)
    return [
        dropout(x, 0.5) != 0,
        dropout2d(x, 0.5)[:, :, 0, 0] != 0,
        stochastic_depth(torch.ones(1024, 1), 0.5, "row") != 0,
        drop_block2d(x, 0.5, 2) != 0,
    ]


def test_ranks_draw_by_their_own_seeds() -> None:
    apart = processes.run(masks, [(seed,) for seed in SEEDS])
    alike = processes.run(masks, [(SEEDS[0],)] * 2)
    for first, second in zip(*apart, strict=True):
        # Blocks drop the middle of a map more often, on every rank: centred place by place.
        a, b = (
            (mask.double() - mask.double().mean((0, 1), keepdim=True)).flatten()
            for mask in (first, second)
        )
        # Elements of a block are one draw: at least a quarter as many as elements.
        assert abs((a @ b / (a.norm() * b.norm())).item()) < 5 * 2 / math.sqrt(a.numel())
    for first, second in zip(*alike, strict=True):
        assert torch.equal(first, second)
    for mask, here in zip(apart[0], masks(SEEDS[0]), strict=True):
        assert torch.equal(mask, here)
