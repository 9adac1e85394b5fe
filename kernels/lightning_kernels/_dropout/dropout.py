"""Dropout that replays its mask in the backward pass instead of storing it."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import cdiv, is_dense, is_traced, launch, runs_triton
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.random import random_words, reserve
from lightning_kernels._core.rate import (
    aten_factor,
    load_rate,
    resolve_rate,
    survivors_scale,
    threshold_of,
)
from lightning_kernels._core.triton import tl, triton

BLOCK_SIZE = 2048  # elements per program: two loads of 128 bits a thread, in 16 bits
_SATURATION = -1.7580993408473766  # what SELU tends to: -scale * alpha
_SATURATED = tl.constexpr(_SATURATION)


@triton.jit
def load_alpha_rate(rate_ptr, threshold, scale, shift, dropped):
    """Return threshold, scale and shift of survivors, and what the others become."""
    if rate_ptr is not None:
        threshold, _ = load_rate(rate_ptr, threshold, scale)
        p = tl.load(rate_ptr)
        scale = tl.where(p < 1, tl.rsqrt((1 - p) * (1 + p * _SATURATED * _SATURATED)), 0.0)
        shift = -p * scale * _SATURATED
        dropped = (1 - p) * scale * _SATURATED
    return threshold.to(tl.uint32), scale, shift, dropped


@triton.jit(do_not_specialize=["threshold", "seed", "offset"])
def _dropout_kernel(
    x_ptr,
    y_ptr,
    numel,
    threshold: tl.uint32,
    scale,
    shift,
    dropped,
    rate_ptr,
    state_ptr,
    seed: tl.uint64,
    offset: tl.uint64,
    ALPHA: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Store ``x * scale + shift`` where the random word reaches ``threshold``, else a constant."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_SIZE
    index = start + tl.arange(0, BLOCK_SIZE)
    in_bounds = index < numel
    if ALPHA:
        threshold, scale, shift, dropped = load_alpha_rate(
            rate_ptr, threshold, scale, shift, dropped
        )
    else:
        threshold, scale = load_rate(rate_ptr, threshold, scale)
    x = tl.load(x_ptr + index, mask=in_bounds).to(tl.float32)
    word = random_words(state_ptr, seed, offset, start // 4, BLOCK_SIZE)
    y = x * tl.where(word < threshold, 0.0, scale)
    if ALPHA and not GRADIENT:
        y += tl.where(word < threshold, dropped, shift)
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


def alpha_constants(p: float) -> tuple[float, float, float]:
    """Return scale and shift of survivors and what the others become, of mean 0 and variance 1."""
    if p == 1.0:
        return 0.0, 0.0, 0.0
    scale = 1 / math.sqrt((1 - p) * (1 + p * _SATURATION**2))
    return scale, -p * scale * _SATURATION, (1 - p) * scale * _SATURATION


def _launch(
    x: Tensor, y: Tensor, p: float, rate: Tensor | None, alpha: bool, gradient: bool,
    state: Tensor | None, seed: int, offset: int,
) -> None:  # fmt: skip
    """Write the dropout of ``x`` to ``y``, dense tensors of equal strides, perhaps the same."""
    constants = alpha_constants(p) if alpha else (survivors_scale(p), 0.0, 0.0)
    grid = (cdiv(x.numel(), BLOCK_SIZE),)
    launch(
        _dropout_kernel, grid, x.device, x, y, x.numel(), threshold_of(p), *constants, rate,
        state, seed, offset, ALPHA=alpha, GRADIENT=gradient, BLOCK_SIZE=BLOCK_SIZE, num_warps=4,
    )  # fmt: skip


def _forward(x: Tensor, *options: Any) -> Tensor:
    y = torch.empty_like(x)  # dense, and of x's strides if x is dense
    _launch(x if x.stride() == y.stride() else y.copy_(x), y, *options)
    return y


def _forward_in_place(ctx: Any, x: Tensor, *options: Any) -> Tensor:
    _launch(x, x, *options)
    ctx.mark_dirty(x)
    _setup_context(ctx, (x, *options), x)
    return x


def _fake(x: Tensor, *options: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, rate, ctx.alpha, _, state, ctx.seed, ctx.offset = inputs
    ctx.strides = output.stride()
    ctx.save_for_backward(rate, state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Apply the same mask: dropout is linear, so it is its own gradient, and theirs in turn."""
    rate, state = ctx.saved_tensors
    grad = with_strides(grad, ctx.strides)  # the mask belongs to places in memory
    return (
        _dropout(grad, ctx.p, rate, ctx.alpha, True, state, ctx.seed, ctx.offset),
        *(None,) * 7,
    )


def with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``tensor``, or a copy of it with these strides."""
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)


_dropout = Operator(
    "dropout",
    "(Tensor x, float p, Tensor? rate, bool alpha, bool gradient, Tensor? state, int seed,"
    " int offset) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


class _DropoutInPlace(torch.autograd.Function):
    """Dropout written over its input, in eager mode."""

    forward = staticmethod(_forward_in_place)
    backward = staticmethod(_backward)


def dropout(
    x: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    r"""Zero each element with probability ``p`` and scale the rest, in one pass and with no mask.

    .. math:: y_i = x_i \, m_i / (1 - p), \quad m_i \sim \text{Bernoulli}(1 - p)

    Equal to :func:`torch.nn.functional.dropout` in distribution, not bit for bit. The mask is a
    function of torch's seed, its Philox offset and the element's place in memory, so the backward
    pass computes it again: nothing is kept but two integers. The rate is exact to 2**-32. Where the
    kernels do not run (see :func:`lightning_kernels.route`) this is torch's own function.

    Args:
        x: Tensor of any shape and strides, floating point.
        p: Probability of zeroing an element. As a tensor (one float32 on ``x``'s device) it is
            read on the device alone: changes need neither a recompilation nor a synchronisation,
            and reach a captured CUDA graph. It must not change between forward and backward.
        training: When false, return ``x`` itself.
        inplace: Write the result over ``x``.

    Returns:
        Tensor with the shape, dtype and (if ``x`` is dense) strides of ``x``; ``x`` itself if
        nothing is to be dropped. As in torch, nan and infinity stay nan where dropped.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]`` or nan.
        RuntimeError: If ``x`` is not floating point and something is to be dropped; if ``p`` is
            another tensor than it may be.

    References:
        Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from
        overfitting"; Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """
    p, rate = resolve_rate("dropout", p, x)
    if not training or (p == 0.0 and rate is None):
        return x
    check_floating("dropout", x)
    if runs_triton(x):
        return _run(x, p, rate, False, inplace)
    if rate is None:
        return torch.nn.functional.dropout(x, p, inplace=inplace)
    factor = aten_factor(x, x.shape, rate)
    return x.mul_(factor) if inplace else x * factor


def alpha_dropout(
    x: Tensor, p: float | Tensor = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    r"""Set each element to SELU's saturation value with probability ``p``; keep mean and variance.

    .. math:: y_i = a \, (x_i m_i + \alpha' (1 - m_i)) + b, \quad m_i \sim \text{Bernoulli}(1 - p)

    with :math:`\alpha' = -1.7581`, :math:`a = ((1 - p)(1 + p \alpha'^2))^{-1/2}` and
    :math:`b = -a p \alpha'`, so that an input of mean 0 and variance 1 keeps both. One pass, and
    no mask in memory: see :func:`dropout`, also for the arguments and errors. Equal to
    :func:`torch.nn.functional.alpha_dropout` in distribution.

    References:
        Klambauer et al., 2017, "Self-normalizing neural networks", arXiv:1706.02515.
    """
    p, rate = resolve_rate("alpha_dropout", p, x)
    if not training or (p == 0.0 and rate is None):
        return x
    check_floating("alpha_dropout", x)
    if runs_triton(x):
        return _run(x, p, rate, True, inplace)
    if rate is None:
        return torch.nn.functional.alpha_dropout(x, p, training=True, inplace=inplace)
    return aten_alpha_dropout(x, x.shape, rate, inplace)


def aten_alpha_dropout(
    x: Tensor, shape: list[int] | torch.Size, rate: Tensor, inplace: bool
) -> Tensor:
    """Compose alpha dropout of a rate that is a tensor, with a mask of ``shape``."""
    kept = aten_factor(x, shape, rate) != 0
    scale = torch.where(rate < 1, ((1 - rate) * (1 + rate * _SATURATION**2)).rsqrt(), 0.0)
    factor = torch.where(kept, scale, 0.0).to(x.dtype)
    shift = torch.where(kept, -rate, 1 - rate) * scale * _SATURATION
    return (x.mul_(factor) if inplace else x * factor).add_(shift.to(x.dtype))


def check_floating(function: str, x: Tensor) -> None:
    """Refuse integers and complex numbers as torch does."""
    if not x.is_floating_point():
        raise RuntimeError(f"{function} expects a floating-point input, but got {x.dtype}")


def _run(x: Tensor, p: float, rate: Tensor | None, alpha: bool, inplace: bool) -> Tensor:
    options = (p, rate, alpha, False, *reserve(x))
    if not inplace:
        return _dropout(x, *options)
    if is_traced(x) or not is_dense(x):
        return x.copy_(_dropout(x, *options))
    return _DropoutInPlace.apply(x, *options)
