"""DropBlock composed of torch's functions.

A seed is a position whose block is dropped. It is the corner of the block with the smallest
indices. On the CPU mostly the seeds alone are drawn. On other devices a random number is drawn for
every position.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels._core.dispatch import is_traced, is_transformed
from lightning_kernels._drop_block.layout import Sizes

# On the CPU, drawing all positions is faster than drawing the seeds alone for fewer than _SMALL
# elements, and for blocks of one element if gamma is above _MANY. Time of forward and backward pass
# by torchvision's (torch 2.14, one thread, blocks of 3): with all positions 1.02 for 512 elements
# and 1.07 for 3136, where the seeds alone take 1.46; with the seeds alone 1.2 for 6272, 0.65 for
# 25088 and 0.43 for 50176.
_SMALL = 8192  # elements
_MANY = 0.1  # gamma, the probability of a seed
_EXACT = (torch.float32, torch.float64)  # dtypes in which a scaled mask is not rounded much


def aten_drop_block(
    x: Tensor, gamma: float | Tensor, block: Sizes, inplace: bool, eps: float, per_channel: bool
) -> Tensor:
    """Drop blocks and rescale the kept elements.

    Each position at which a block fits is a seed with probability ``gamma``, independently.
    """
    shape = (x.shape[0], x.shape[1] if per_channel else 1, *x.shape[2:])
    if x.device.type == "cpu" and not is_traced(x) and not is_transformed():
        gamma = float(gamma)
        if x.numel() < _SMALL and x.dtype in _EXACT:
            return _apply_small(x, _draw_all(x, shape, gamma, block), inplace, eps)
        mask = _draw_mask(x.detach(), shape, gamma, block)
        kept = int(mask.count_nonzero())
        scale = mask.numel() / (eps + kept) if kept else 0.0
        masked: Tensor = _Masked.apply(x, mask, scale, inplace)
        return masked
    rate = torch.as_tensor(gamma, dtype=torch.float32, device=x.device)
    mask = _not_covered(torch.bernoulli(rate.expand(_positions(shape, block))), block)
    count = mask.sum()  # int64, because the mask is boolean
    factor = torch.where(count > 0, mask.numel() / (eps + count.double()), 0.0)
    return x.mul_(mask).mul_(factor) if inplace else x * mask * factor


def _apply_small(x: Tensor, mask: Tensor, inplace: bool, eps: float) -> Tensor:
    """Multiply ``x`` by the scaled mask, which the graph keeps: one operation each way."""
    kept = int(mask.count_nonzero())
    factor = mask.to(x.dtype).mul_(mask.numel() / (eps + kept) if kept else 0.0)
    return x.mul_(factor) if inplace else x * factor


def _draw_all(x: Tensor, shape: Sizes, gamma: float, block: Sizes) -> Tensor:
    """Draw a number for every position, and return the mask: True outside of the blocks."""
    seeds = torch.empty(_positions(shape, block), dtype=torch.float32, device=x.device)
    return _not_covered(seeds.bernoulli_(gamma), block)


def _draw_mask(x: Tensor, shape: Sizes, gamma: float, block: Sizes) -> Tensor:
    """Draw a mask of ``shape``, 0 in the blocks and 1 elsewhere, by the faster of two methods."""
    if x.numel() < _SMALL or (math.prod(block) == 1 and gamma > _MANY):
        return _draw_all(x, shape, gamma, block)
    return _mask_from_seeds(x, shape, gamma, block)


def _mask_from_seeds(x: Tensor, shape: Sizes, gamma: float, block: Sizes) -> Tensor:
    """Draw a mask of bytes, 0 in the blocks and 1 elsewhere, from the seeds alone.

    The gaps between seeds are drawn from the geometric distribution, because positions are
    independent trials. So the number of draws and writes is proportional to the number of dropped
    elements. If ``shape`` is the shape of ``x``, the mask has the memory layout of ``x``.
    """
    if x.shape == shape:
        mask = torch.ones_like(x, dtype=torch.uint8)
    else:
        mask = torch.ones(shape, dtype=torch.uint8, device=x.device)
    positions = _positions(shape, block)
    seed = _successes(math.prod(positions), gamma, x.device)
    corner = torch.zeros_like(seed)
    for size, stride in zip(reversed(positions), reversed(mask.stride()), strict=True):
        corner += seed % size * stride
        seed = seed // size
    within = torch.zeros(1, dtype=torch.int64, device=x.device)
    for edge, stride in zip(block, mask.stride()[2:], strict=True):
        within = (within[:, None] + torch.arange(edge, device=x.device) * stride).flatten()
    memory = mask.as_strided((mask.numel(),), (1,))
    memory.index_fill_(0, (corner[:, None] + within).flatten(), 0)
    return mask


def _positions(shape: Sizes, block: Sizes) -> Sizes:
    """Return the shape of the positions at which a block fits into a mask of ``shape``."""
    return tuple(size - edge + 1 for size, edge in zip(shape, (1, 1, *block), strict=True))


def _successes(trials: int, p: float, device: torch.device) -> Tensor:
    """Draw independent trials of probability ``p``. Return the indices of successes, in order."""
    if p in (0.0, 1.0):  # torch's geometric distribution excludes 0 and 1
        return torch.arange(trials if p else 0, device=device)
    found: list[Tensor] = []
    last = -1
    while last < trials:
        number = int((trials - 1 - last) * p) + 16  # the mean of the rest, and a few more
        gaps = torch.empty(number, dtype=torch.float64, device=device)
        gaps.geometric_(p).clamp_(max=trials + 1)
        found.append(gaps.to(torch.int64).cumsum_(0).add_(last))
        last = int(found[-1][-1])
    successes = torch.cat(found)
    return successes[: int(torch.searchsorted(successes, trials))]


def _not_covered(seeds: Tensor, block: Sizes) -> Tensor:
    """Return a mask: True where no block covers the element.

    ``seeds`` is 1 at the seeds and 0 at other positions.
    """
    halves = [edge // 2 for edge in block]  # pooling itself pads by half a block at most
    rest = [edge - 1 - half for edge, half in zip(block, halves, strict=True)]
    seeds = F.pad(seeds, [margin for margin in reversed(rest) for _ in range(2)])
    if len(block) == 2:
        return F.max_pool2d(seeds, block, 1, halves) == 0
    # Over slices and then over the depth: fewer comparisons than over whole cubes.
    seeds = F.max_pool3d(seeds, [1, *block[1:]], 1, [0, *halves[1:]])
    return F.max_pool3d(seeds, [block[0], 1, 1], 1, [halves[0], 0, 0]) == 0


class _Masked(torch.autograd.Function):
    """``x * mask * scale``. The graph keeps the mask, one byte per element, and the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float, inplace: bool) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        if inplace:
            ctx.mark_dirty(x)
            return x.mul_(mask).mul_(scale)
        return (x * mask).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return _Masked.apply(grad, mask, ctx.scale, False), None, None, None
