"""``lightning_kernels.drop_block2d`` and ``3d`` on whichever route this run has."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision import ops

from lightning_kernels import drop_block2d, drop_block3d, dropout
from lightning_kernels._drop_block.aten import _successes

Sizes = tuple[int, ...]

# Map and block: odd and even, H != W, block on the edge and beyond, and each way to cut rows.
MAPS: list[tuple[Sizes, int]] = [
    ((14, 14), 7),
    ((5, 9), 4),
    ((12, 3), 6),
    ((2, 5), 8),
    ((6, 1), 2),
    ((4, 33), 3),
    ((2, 16), 9),
    ((4, 5, 6), 3),
    ((2, 7, 4), 4),
    ((12, 12), 2),  # the last two in several tiles
    ((6, 6, 8), 2),
]


def drop_block(x: Tensor, p: float | Tensor, block_size: int, **options: Any) -> Tensor:
    function = drop_block2d if x.dim() == 4 else drop_block3d
    return function(x, p, block_size, **options)


def dropped(shape: Sizes, p: float, block_size: int, device: str) -> Tensor:
    return drop_block(torch.ones(shape, device=device), p, block_size) == 0


def positions_of(sizes: Sizes, block_size: int) -> tuple[Sizes, Sizes]:
    block = (min(block_size, *sizes),) * len(sizes)
    return block, tuple(size - edge + 1 for size, edge in zip(sizes, block, strict=True))


def probabilities(sizes: Sizes, p: float, block_size: int) -> Tensor:
    """Return by hand with which probability each place is dropped: some block covers it."""
    block, positions = positions_of(sizes, block_size)
    gamma = p * math.prod(sizes) / (math.prod(block) * math.prod(positions))
    covering = torch.zeros(sizes, dtype=torch.float64)
    for corner in itertools.product(*map(range, positions)):
        covering[tuple(slice(c, c + k) for c, k in zip(corner, block, strict=True))] += 1
    return 1 - (1 - gamma) ** covering


def pool(mask: Tensor, block: Sizes) -> Tensor:
    """Return whether all of each block is set."""
    function = F.max_pool2d if len(block) == 2 else F.max_pool3d
    return 1 - function(1 - mask.double(), block, stride=1)


def spread(seeds: Tensor, block: Sizes) -> Tensor:
    """Return what the blocks at ``seeds`` cover."""
    function = F.max_pool2d if len(block) == 2 else F.max_pool3d
    return function(F.pad(seeds, [k - 1 for k in reversed(block) for _ in "ab"]), block, stride=1)


@pytest.mark.parametrize(("sizes", "block_size"), MAPS, ids=str)
def test_each_place_is_dropped_as_often_as_it_must_be(
    sizes: Sizes, block_size: int, device: str
) -> None:
    planes, p = 512, 0.3
    mask = dropped((planes // 16, 16, *sizes), p, block_size, device).flatten(0, 1)
    share = mask.double().mean(0).cpu()
    expected = probabilities(sizes, p, block_size)
    sigma = (expected * (1 - expected) / planes).sqrt() + 1e-9
    assert ((share - expected) / sigma).abs().max().item() < 5


@pytest.mark.parametrize(("sizes", "block_size"), MAPS, ids=str)
def test_what_is_dropped_is_whole_blocks(sizes: Sizes, block_size: int, device: str) -> None:
    mask = dropped((8, 8, *sizes), 0.3, block_size, device)
    block, _ = positions_of(sizes, block_size)
    assert torch.equal(spread(pool(mask, block), block), mask.double())
    assert 0 < mask.sum() < mask.numel()


@pytest.mark.parametrize(("sizes", "block_size"), [((9, 6), 3), ((7, 8), 5), ((4, 6, 5), 3)])
def test_torchvision_drops_as_many(sizes: Sizes, block_size: int, device: str) -> None:
    """Two samples of the number of dropped elements in a plane, compared by chi-square."""
    theirs = ops.drop_block2d if len(sizes) == 2 else ops.drop_block3d
    x = torch.ones(32, 32, *sizes, device=device)
    counts = []
    for y in (drop_block(x, 0.4, block_size), theirs(x, 0.4, block_size)):
        number = (y == 0).flatten(2).sum(2).flatten().cpu()
        counts.append(torch.bincount(number, minlength=math.prod(sizes) + 1).double())
    common = (counts[0] + counts[1]) >= 10
    ours, other = (torch.cat([c[common], c[~common].sum()[None]]) for c in counts)
    both = ours + other
    statistic = ((ours - other) ** 2 / both.clamp(min=1)).sum().item()
    freedom = int(common.sum())
    assert freedom >= 3
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_seeds_are_independent_trials(device: str) -> None:
    """Every pattern of seeds of a map of 2 x 2, by chi-square against the binomial law."""
    planes, gamma = 8192, 0.3
    mask = drop_block2d(torch.ones(planes // 8, 8, 2, 2, device=device), gamma, 1).flatten(2) == 0
    pattern = (mask.long() * torch.tensor([1, 2, 4, 8], device=device)).sum(2).flatten().cpu()
    seen = torch.bincount(pattern, minlength=16).double()
    bits = torch.tensor([n.bit_count() for n in range(16)])
    expected = planes * gamma**bits * (1 - gamma) ** (4 - bits)
    assert ((seen - expected) ** 2 / expected).sum().item() < 15 + 5 * math.sqrt(30)


def test_sparse_trials_are_independent_too() -> None:
    p, times = 0.4, 4000
    device = torch.device("cpu")
    numbers = [int((2 ** _successes(3, p, device)).sum()) for _ in range(times)]
    seen = torch.bincount(torch.tensor(numbers), minlength=8).double()
    bits = torch.tensor([n.bit_count() for n in range(8)])
    expected = times * p**bits * (1 - p) ** (3 - bits)
    assert ((seen - expected) ** 2 / expected).sum().item() < 7 + 5 * math.sqrt(14)
    many = _successes(1_000_000, 0.01, device)  # drawn in several goes
    assert abs(many.numel() - 10_000) < 5 * math.sqrt(9900)
    assert torch.equal(many, many.unique())
    quarters = torch.bincount(many // 250_000, minlength=4).double()
    assert (quarters - 2500).abs().max() < 5 * math.sqrt(2475)


def test_gaps_in_one_part_of_a_map_do_not_come_again_in_the_next(device: str) -> None:
    p, part = 0.3, 32  # elements: with such a map and block as many as a kernel draws in one run
    mask = dropped((8, 16, 4 * part // 2, 2), p, 1, device).reshape(128, 4, part)
    place = torch.arange(part, device=device).expand_as(mask)
    first = torch.where(mask, place, part).amin(2)
    second = torch.where(mask & (place > first[..., None]), place, part).amin(2)
    same = (second - first - 1)[:, :-1] == first[:, 1:]
    expected = p / (2 - p)  # two independent gaps are equal
    sigma = math.sqrt(expected * (1 - expected) / same.numel())
    assert abs(same.double().mean().item() - expected) < 5 * sigma


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("sizes", "block_size", "per_channel"), [((6, 9), 3, False), ((5, 4, 7), 2, True)]
)
def test_kept_ones_are_exactly_rescaled_and_so_is_the_gradient(
    sizes: Sizes, block_size: int, per_channel: bool, dtype: torch.dtype, device: str
) -> None:
    x = (torch.rand(3, 5, *sizes, device=device) + 1).to(dtype).requires_grad_()
    y = drop_block(x, 0.3, block_size, eps=0.5, per_channel=per_channel)
    kept = y != 0
    mask = kept if per_channel else kept[:, 0]
    scale = mask.numel() / (0.5 + int(mask.sum()))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(scale, dtype=wide).item()
    expected = torch.where(kept, (x.to(wide) * scale).to(dtype), 0)
    tolerance = 1e-15 if dtype == torch.float64 else 1e-7 if dtype == torch.float32 else 0
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=0)
    grad = torch.randn_like(y)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    expected = torch.where(kept, (grad.to(wide) * scale).to(dtype), 0)
    torch.testing.assert_close(grad_x, expected, rtol=tolerance, atol=0)


def test_one_mask_for_all_channels(device: str) -> None:
    x = torch.ones(64, 6, 9, 7, device=device)
    mask = drop_block2d(x, 0.4, 3, per_channel=False) == 0
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert len({tuple(plane.flatten().tolist()) for plane in mask[:, 0]}) > 40
    share = drop_block2d(torch.ones(2048, 2, 4, 5, device=device), 0.4, 3, per_channel=False) == 0
    expected = probabilities((4, 5), 0.4, 3)
    sigma = (expected * (1 - expected) / 2048).sqrt()
    assert ((share[:, 0].double().mean(0).cpu() - expected) / sigma).abs().max() < 5


@pytest.mark.parametrize(
    ("sizes", "block_size", "per_channel"),
    [(*case, i % 3 < 2) for i, case in enumerate(MAPS)],
    ids=str,
)
def test_both_layouts_have_the_same_mask(
    sizes: Sizes, block_size: int, per_channel: bool, device: str
) -> None:
    layout = torch.channels_last if len(sizes) == 2 else torch.channels_last_3d
    x = torch.rand(5, 6, *sizes, device=device) + 1
    results = []
    for given in (x, x.to(memory_format=layout), x.repeat_interleave(2, -1)[..., ::2]):
        torch.manual_seed(1)
        given = given.detach().requires_grad_()
        y = drop_block(given, 0.3, block_size, per_channel=per_channel)
        assert y.stride() == torch.empty_like(given).stride()
        for grad in (torch.ones_like(y), torch.ones_like(y).to(memory_format=layout)):
            (grad_x,) = torch.autograd.grad(y, given, grad, retain_graph=True)
            torch.testing.assert_close(grad_x * given, y)
        results.append(y)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("per_channel", [True, pytest.param(False, marks=pytest.mark.full)])
def test_rows_of_many_words(per_channel: bool, device: str) -> None:
    x = torch.rand(1, 3, 4, 993, device=device) + 1  # 31 pieces of 32 elements and one of a single
    torch.manual_seed(1)
    y = drop_block2d(x, 0.5, 4, per_channel=per_channel)
    torch.manual_seed(1)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(drop_block2d(last, 0.5, 4, per_channel=per_channel), y)
    mask = y == 0
    assert torch.equal(spread(pool(mask, (4, 4)), (4, 4)), mask.double())
    assert 0 < mask.sum() < mask.numel()


def test_no_correlation_between_planes_or_calls(device: str) -> None:
    x = torch.ones(64, 32, 7, 7, device=device)
    drawn = torch.stack([(drop_block2d(x, 0.5, 7) == 0)[..., 0, 0].double() for _ in range(3)])
    drawn = drawn.cpu() * 2 - 1
    flat = drawn.flatten(1)
    calls = (flat @ flat.T / flat.shape[1]).triu(1)
    assert calls.abs().max() < 5 / math.sqrt(flat.shape[1])
    for lag in (1, 2, 3, 4, 5, 31, 32, 33, 256, 1024):
        correlation = (flat[:, lag:] * flat[:, :-lag]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(flat[:, lag:].numel()), lag


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.2, 1.0])
def test_as_torchvision_where_all_is_dropped_or_nothing(
    p: float, dtype: torch.dtype, device: str
) -> None:
    x = torch.randn(3, 4, 5, 5, device=device, dtype=dtype)
    assert drop_block2d(x, 0.0, 3) is x
    assert drop_block2d(x, p, 3, training=False) is x
    leaf = x.clone().requires_grad_()
    y = drop_block2d(leaf, 1.0, 5)  # gamma is 1
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(torch.autograd.grad(y.sum(), leaf)[0], torch.zeros_like(x))
    assert torch.equal(drop_block2d(x, 1.0, 9, eps=0.0), torch.zeros_like(x))
    assert not drop_block2d(torch.ones_like(x), p, 2).isnan().any()


def test_nan_and_infinity_as_in_torchvision(device: str) -> None:
    x = torch.full((8, 8, 4, 4), math.inf, device=device)
    y = drop_block2d(x, 0.5, 4)
    assert (y.isnan() | (y == math.inf)).all()  # inf * 0 is nan
    assert 0 < y.isnan().sum() < y.numel()
    assert drop_block2d(x * 0, 0.5, 4).isnan().all()


def test_more_kept_than_float16_can_count(device: str) -> None:
    x = torch.ones(8, 20, 25, 25, device=device, dtype=torch.float16)  # 100 000
    y = drop_block2d(x, 0.1, 5)
    kept = int((y != 0).sum())
    assert kept > 65504
    assert y.max() == torch.tensor(x.numel() / kept).to(torch.float16)
    x = torch.ones(2, 3, 16, 16, device=device, dtype=torch.float16)
    torch.testing.assert_close(
        drop_block2d(x, 0.1, 3).double().mean().item(), 1.0, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("p", [0.05, 0.7])
def test_a_rate_in_a_tensor(p: float, device: str) -> None:
    rate = torch.tensor(p, device=device)
    x = torch.ones(32, 32, 5, 6, device=device)
    mask = (drop_block2d(x, rate, 3) == 0).flatten(0, 1).double().mean(0).cpu()
    expected = probabilities((5, 6), p, 3)
    assert ((mask - expected) / (expected * (1 - expected) / 1024).sqrt()).abs().max() < 5
    assert torch.equal(drop_block2d(x, rate * 0, 3), x)
    assert torch.equal(drop_block2d(x, rate * 0 + 1, 1), x * 0)
    torch.manual_seed(1)
    number = drop_block2d(x, p, 3)
    torch.manual_seed(1)
    assert (drop_block2d(x, rate, 3) != number).double().mean() < 1e-3  # of rounding, at most


def test_an_empty_tensor(device: str) -> None:
    for shape in ((0, 3, 5, 5), (2, 3, 0, 5)):
        x = torch.empty(shape, device=device, requires_grad=True)
        y = drop_block2d(x, 0.5, 3)
        assert y.shape == shape
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_bad_arguments(device: str) -> None:
    x = torch.ones(2, 3, 4, 5, device=device)
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
            drop_block2d(x, p, 3)
    with pytest.raises(
        ValueError, match=r"drop_block3d expects an input of 5 dimensions, but got \[2, 3, 4,"
    ):
        drop_block3d(x, 0.1, 3)
    with pytest.raises(
        ValueError, match=r"drop_block2d expects an input of 4 dimensions, but got \[3, 4, 5\]"
    ):
        drop_block2d(x[0], 0.1, 3, training=False)
    for size in (0, -3, 2.5, None):
        with pytest.raises(ValueError, match=f"at least 1, but got {size}"):
            drop_block2d(x, 0.1, size)  # type: ignore[arg-type]
    for eps in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"eps as a number of 0 or more, but got {eps}"):
            drop_block2d(x, 0.1, 3, eps=eps)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(RuntimeError, match=f"drop_block2d expects a floating.*{dtype}"):
            drop_block2d(x.to(dtype), 0.1, 3)
    with pytest.raises(RuntimeError, match="drop_block2d expects p as a number, or as one"):
        drop_block2d(x, torch.ones(2, device=device), 3)
    assert drop_block2d(x.long(), 0.0, 3).dtype == torch.int64


def test_a_block_of_one_is_dropout(device: str) -> None:
    x = torch.ones(64, 32, 3, 4, device=device)
    ours, theirs = ((f(x) == 0).double().mean().item() for f in (
        lambda x: drop_block2d(x, 0.3, 1), lambda x: dropout(x, 0.3)
    ))  # fmt: skip
    assert abs(ours - theirs) < 5 * math.sqrt(2 * 0.21 / x.numel())
