"""Fusing changes neither the share that a layer drops, nor how it rescales the rest."""

import copy
import itertools
import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import drop
from torch import Tensor, nn
from torchvision import ops

from lightning_practices.surgery import Skipped, fuse
from tests.amounts import few_and_many

Sizes = tuple[int, ...]

P = 0.1
PLANES = 1024

MAPS = [(5, 5), (7, 7), (4, 4), (6, 6), (9, 9), (14, 14), (5, 9), (8, 3)]
VOLUMES = [(3, 5, 5), (4, 6, 5), (6, 3, 8), (5, 5, 7)]


def by_torchvision(sizes: Sizes, block_size: int) -> Tensor:
    """Return the probability that each place is dropped: blocks lie within the map."""
    edge = min(block_size, *sizes)
    block = (edge,) * len(sizes)
    return covered(sizes, block, [range(size - edge + 1) for size in sizes])


def by_timm(sizes: Sizes, block_size: int) -> Tensor:
    """Return the probability that each place is dropped: centres of blocks lie within the map."""
    block = tuple(min(block_size, size) for size in sizes)
    firsts = [range(-(k // 2), n - k // 2) for n, k in zip(sizes, block, strict=True)]
    return covered(sizes, block, firsts)


def covered(sizes: Sizes, block: Sizes, firsts: list[range]) -> Tensor:
    fitting = math.prod(n - k + 1 for n, k in zip(sizes, block, strict=True))
    gamma = P * math.prod(sizes) / math.prod(block) / fitting
    number = torch.zeros(sizes, dtype=torch.float64)
    for corner in itertools.product(*firsts):
        edges = zip(corner, block, strict=True)
        number[tuple(slice(max(c, 0), max(c + k, 0)) for c, k in edges)] += 1
    return 1 - (1 - gamma) ** number


def timm_block(p: float, block_size: int) -> Any:
    return drop.DropBlock2d(p, block_size, couple_channels=False)


CASES = [
    *itertools.product([(timm_block, by_timm)], MAPS, (1, 3, 4, 7, 9)),
    # torchvision refuses blocks of even size.
    *(
        ((layer, by_torchvision), sizes, size)
        for layer, places in ((ops.DropBlock2d, MAPS), (ops.DropBlock3d, VOLUMES))
        for sizes, size in itertools.product(places, (1, 3, 7, 9))
        if min(size, *sizes) % 2
    ),
]


def mean_and_error(layer: nn.Module, sizes: Sizes, device: str) -> tuple[float, float]:
    """Return the share that a layer drops, and the standard error of this mean over planes."""
    torch.manual_seed(3)
    mask = layer(torch.ones(PLANES // 16, 16, *sizes, device=device)) == 0
    shares = mask.flatten(2).double().mean(2).flatten()
    return shares.mean().item(), shares.std().item() / math.sqrt(PLANES)


@pytest.mark.parametrize(
    "case", few_and_many(CASES[::4], [*CASES[1::4], *CASES[2::4], *CASES[3::4]])
)
def test_the_share_of_blocks(case: tuple[Any, Sizes, int], device: str) -> None:
    (make, law), sizes, block_size = case
    layer = make(P, block_size)
    expected = law(sizes, block_size).mean().item()
    fused = copy.deepcopy(layer)
    fuse(fused)
    for each in (layer, fused):
        mean, error = mean_and_error(each, sizes, device)
        assert abs(mean - expected) < 5 * error + 1e-12


def test_timms_blocks_are_left_alone() -> None:
    layer = drop.DropBlock2d(P, 4)
    report = fuse(layer)
    reason = "timm also drops blocks that reach beyond the map, and so another share"
    (skipped,) = report.skipped
    assert not report.replaced
    assert isinstance(skipped, Skipped)
    assert skipped.names == ("",)
    assert skipped.reason.startswith(reason)
    assert type(layer) is drop.DropBlock2d


@pytest.mark.parametrize(
    "layer",
    [
        ops.StochasticDepth(0.3, "row"),
        ops.StochasticDepth(0.3, "batch"),
        ops.StochasticDepth(1.0, "row"),
        drop.DropPath(0.3),
        drop.DropPath(0.3, scale_by_keep=False),
        drop.DropPath(1.0),
        drop.DropPath(1.0, scale_by_keep=False),
    ],
    ids=lambda layer: f"{layer} {vars(layer).get('scale_by_keep', '')}",
)
def test_paths_are_dropped_and_rescaled_alike(layer: Any, device: str) -> None:
    """Whole samples, or the whole batch, become 0 or a constant; the share by five errors."""
    fused = copy.deepcopy(layer)
    assert len(fuse(fused).replaced) == 1
    rate = vars(layer).get("p", vars(layer).get("drop_prob"))
    kept = 1.0 if rate == 1 or vars(layer).get("scale_by_keep") is False else 1 / (1 - rate)
    passes, rows = (400, 2) if vars(layer).get("mode") == "batch" else (1, 800)
    x = torch.ones(rows, 3, device=device)
    for each in (layer, fused):
        torch.manual_seed(4)
        y = torch.stack([each(x) for _ in range(passes)]).double().cpu()
        dropped = y == 0
        torch.testing.assert_close(y, torch.where(dropped, 0.0, kept).double(), rtol=1e-6, atol=0)
        # What is dropped at once is equal: a sample, or the batch.
        units = dropped.flatten(1) if passes > 1 else dropped[0]
        assert (units.all(1) | ~units.any(1)).all()
        error = math.sqrt(rate * (1 - rate) / len(units))
        assert abs(units[:, 0].double().mean().item() - rate) <= 5 * error


def test_a_whole_network_with_timms_blocks_keeps_them() -> None:
    model = timm.create_model("resnet18", drop_block_rate=0.1, num_classes=2)
    blocks = [name for name, layer in model.named_modules() if type(layer) is drop.DropBlock2d]
    assert blocks
    report = fuse(model)
    assert {name for s in report.skipped for name in s.names} >= set(blocks)
    assert [n for n, m in model.named_modules() if type(m) is drop.DropBlock2d] == blocks
