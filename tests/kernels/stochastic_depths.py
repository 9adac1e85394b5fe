"""Cases and references that the tests of stochastic depth share."""

import torch
from torch import Tensor

from lightning_kernels import stochastic_depth

# Shape, layer scale's shape, and the order of the dimensions in memory.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "NCHW": ((12, 5, 4, 3), (5, 1, 1), (0, 1, 2, 3)),
    "NCHW, four dimensions": ((12, 3, 7, 1), (1, 3, 1, 1), (0, 1, 2, 3)),
    "channels last": ((12, 5, 4, 3), (5, 1, 1), (0, 2, 3, 1)),
    "tokens": ((12, 7, 127), (127,), (0, 1, 2)),
    "matrix": ((12, 8), (8,), (0, 1)),
    "third of four": ((12, 2, 5, 3), (5, 1), (0, 1, 2, 3)),
    "one channel": ((12, 1, 4), (1, 1), (0, 1, 2)),
    "a number": ((12, 3, 4), (1,), (0, 1, 2)),
    "each sample": ((12, 3, 4), (12, 1, 1), (0, 1, 2)),
    "each sample of a vector": ((12,), (12,), (0,)),
    "batch in the middle": ((12, 6, 4), (4,), (1, 0, 2)),
    "long": ((4, 4097), (4097,), (0, 1)),
    "large planes": ((3, 2, 4097), (2, 1), (0, 1, 2)),
}


def draw(shape: tuple[int, ...], order: tuple[int, ...], device: str) -> Tensor:
    """Return positive values with the dimensions in this order in memory."""
    x = torch.rand([shape[d] for d in order], device=device) + 1
    return x.permute([order.index(d) for d in range(len(order))])


def kept_of(branch: Tensor, mode: str) -> Tensor:
    """Return which samples' branches are not 0, after checking that each is of one piece."""
    kept = branch.detach().flatten(1) != 0 if branch.dim() > 1 else branch[:, None] != 0
    expected = kept[:, :1] if mode == "row" else kept[:1, :1]
    assert torch.equal(kept, expected.expand_as(kept))
    return kept[:, 0].reshape(-1, *[1] * (branch.dim() - 1))


def kept_after(
    seed: int, shape: tuple[int, ...], p: float, mode: str, device: str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Return which samples a call keeps that follows this seed."""
    torch.manual_seed(seed)
    ones = torch.ones(shape, device=device, dtype=dtype)
    return kept_of(stochastic_depth(ones, p, mode), mode)


def composed(
    x: Tensor, kept: Tensor, rate: float, residual: Tensor | None, layer_scale: Tensor | None
) -> Tensor:
    y = x * kept / (1 - rate)
    y = y if layer_scale is None else layer_scale * y
    return y if residual is None else residual + y
