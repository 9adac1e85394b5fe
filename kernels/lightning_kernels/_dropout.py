"""Dropout that replays its mask in the backward pass instead of storing it."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._dispatch import cdiv, is_traced, launch, runs_triton
from lightning_kernels._operator import Operator
from lightning_kernels._random import random_words, reserve
from lightning_kernels._triton import tl, triton

BLOCK_SIZE = 2048  # elements per program: two loads of 128 bits a thread, in 16 bits
_WORDS = 2**32


@triton.jit(do_not_specialize=["threshold", "seed", "offset"])
def _dropout_kernel(
    x_ptr,
    y_ptr,
    numel,
    threshold: tl.uint32,
    scale,
    state_ptr,
    seed: tl.uint64,
    offset: tl.uint64,
    BLOCK_SIZE: tl.constexpr,
):
    """Store ``x * scale`` where the element's random word reaches ``threshold``, else ``x * 0``."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_SIZE
    index = start + tl.arange(0, BLOCK_SIZE)
    in_bounds = index < numel
    x = tl.load(x_ptr + index, mask=in_bounds).to(tl.float32)
    word = random_words(state_ptr, seed, offset, start // 4, BLOCK_SIZE)
    factor = tl.where(word < threshold.to(tl.uint32), 0.0, scale)
    tl.store(y_ptr + index, (x * factor).to(y_ptr.dtype.element_ty), mask=in_bounds)


def _launch(x: Tensor, y: Tensor, p: float, state: Tensor | None, seed: int, offset: int) -> None:
    """Write the dropout of ``x`` to ``y``, dense tensors of equal strides, perhaps the same."""
    threshold = min(round(p * _WORDS), _WORDS - 1)
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    grid = (cdiv(x.numel(), BLOCK_SIZE),)
    launch(
        _dropout_kernel, grid, x.device, x, y, x.numel(), threshold, scale, state, seed, offset,
        BLOCK_SIZE=BLOCK_SIZE, num_warps=4,
    )  # fmt: skip


def _forward(x: Tensor, p: float, state: Tensor | None, seed: int, offset: int) -> Tensor:
    y = torch.empty_like(x)  # dense, and of x's strides if x is dense
    _launch(x if x.stride() == y.stride() else y.copy_(x), y, p, state, seed, offset)
    return y


def _forward_in_place(
    ctx: Any, x: Tensor, p: float, state: Tensor | None, seed: int, offset: int
) -> Tensor:
    _launch(x, x, p, state, seed, offset)
    ctx.mark_dirty(x)
    _setup_context(ctx, (x, p, state, seed, offset), x)
    return x


def _fake(x: Tensor, p: float, state: Tensor | None, seed: int, offset: int) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, state, ctx.seed, ctx.offset = inputs
    ctx.strides = output.stride()
    ctx.save_for_backward(state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    """Apply the same mask: dropout is linear, so it is its own gradient, and theirs in turn."""
    (state,) = ctx.saved_tensors
    if grad.stride() != ctx.strides:  # the mask belongs to places in memory
        grad = torch.empty_strided(
            grad.shape, ctx.strides, dtype=grad.dtype, device=grad.device
        ).copy_(grad)
    return _dropout(grad, ctx.p, state, ctx.seed, ctx.offset), None, None, None, None


_dropout = Operator(
    "dropout",
    "(Tensor x, float p, Tensor? state, int seed, int offset) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


class _DropoutInPlace(torch.autograd.Function):
    """Dropout written over its input, in eager mode."""

    forward = staticmethod(_forward_in_place)
    backward = staticmethod(_backward)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    r"""Zero each element with probability ``p`` and scale the rest, in one pass and with no mask.

    .. math:: y_i = x_i \, m_i / (1 - p), \quad m_i \sim \text{Bernoulli}(1 - p)

    Equal to :func:`torch.nn.functional.dropout` in distribution, not bit for bit. The mask is a
    function of torch's seed, its Philox offset and the element's place in memory, so the backward
    pass computes it again: nothing is kept but two integers. The rate is exact to 2**-32. Where the
    kernels do not run (see :func:`lightning_kernels.route`) this is torch's own function.

    Args:
        x: Tensor of any shape and strides, floating point.
        p: Probability of zeroing an element.
        training: When false, return ``x`` itself.
        inplace: Write the result over ``x``.

    Returns:
        Tensor with the shape, dtype and (if ``x`` is dense) strides of ``x``; ``x`` itself if
        nothing is to be dropped. As in torch, nan and infinity stay nan where dropped.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]`` or nan.
        RuntimeError: If ``x`` is not floating point and something is to be dropped.

    References:
        Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from
        overfitting"; Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability p has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return x
    if not x.is_floating_point():
        raise RuntimeError(f"dropout expects a floating-point input, but got {x.dtype}")
    if not runs_triton(x):
        return torch.nn.functional.dropout(x, p, inplace=inplace)
    stream = reserve(x)
    if not inplace:
        return _dropout(x, p, *stream)
    if is_traced(x) or not _is_dense(x):
        return x.copy_(_dropout(x, p, *stream))
    return _DropoutInPlace.apply(x, p, *stream)


def _is_dense(x: Tensor) -> bool:
    """Return whether ``x``'s elements fill a stretch of memory, each once, in any order."""
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()
