"""Dropout of elements. The backward pass draws the mask again, so no mask is stored."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.autocast import call_torch
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import runs_triton
from lightning_kernels._core.launch import cdiv, launch
from lightning_kernels._core.layout import is_dense, with_strides
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

BLOCK_SIZE = 2048  # elements per program: two loads of 128 bits per thread for 16-bit dtypes
_SATURATION = -1.7580993408473766  # the limit of SELU at minus infinity: -scale * alpha
_SATURATED = tl.constexpr(_SATURATION)


@triton.jit
def load_alpha_rate(rate_ptr, threshold, scale, shift, dropped):
    """Return the threshold, the scale and shift of kept elements, and the value of dropped ones.

    If ``rate_ptr`` is given, all four are computed from the rate in memory.
    """
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
    """Store ``x * scale + shift`` for kept elements, and ``dropped`` for dropped elements.

    An element is dropped if its random word is below ``threshold``. Without ``ALPHA``, and for a
    gradient, ``shift`` and ``dropped`` count as 0.
    """
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
    """Return the scale and the shift of kept elements, and the value of dropped elements."""
    if p == 1.0:
        return 0.0, 0.0, 0.0
    scale = 1 / math.sqrt((1 - p) * (1 + p * _SATURATION**2))
    return scale, -p * scale * _SATURATION, (1 - p) * scale * _SATURATION


def _launch(
    x: Tensor, y: Tensor, p: float, rate: Tensor | None, alpha: bool, gradient: bool,
    state: Tensor | None, seed: int, offset: int,
) -> None:  # fmt: skip
    """Write the dropout of ``x`` to ``y``: dense tensors of the same strides, or one tensor."""
    constants = alpha_constants(p) if alpha else (survivors_scale(p), 0.0, 0.0)
    grid = (cdiv(x.numel(), BLOCK_SIZE),)
    launch(
        _dropout_kernel, grid, x.device, x, y, x.numel(), threshold_of(p), *constants, rate,
        state, seed, offset, ALPHA=alpha, GRADIENT=alpha and gradient, BLOCK_SIZE=BLOCK_SIZE,
        num_warps=4,
    )  # fmt: skip


def _forward(x: Tensor, *options: Any) -> Tensor:
    y = torch.empty_like(x)  # always dense, with the strides of x if x is dense
    _launch(x if x.stride() == y.stride() else y.copy_(x), y, *options)
    return y


def _forward_in_place(x: Tensor, *options: Any) -> Tensor:
    _launch(x, x, *options)
    return x


def _fake(x: Tensor, *options: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, rate, ctx.alpha, _, state, ctx.seed, ctx.offset = inputs
    ctx.strides = output.stride()
    ctx.save_for_backward(rate, state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Apply the same mask to the gradient: dropout is linear in ``x``."""
    rate, state = ctx.saved_tensors
    grad = with_strides(grad, ctx.strides)  # the mask depends on the order of elements in memory
    options = ctx.p, rate, ctx.alpha, True, state, ctx.seed, ctx.offset
    return dropout_operator(grad, *options), *(None,) * 7


dropout_operator = Operator(
    "dropout",
    "(Tensor x, float p, Tensor? rate, bool alpha, bool gradient, Tensor? state, int seed,"
    " int offset) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    in_place=_forward_in_place,
    fits_in_place=lambda x, *options: is_dense(x),
)


def dropout(
    input: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    r"""Zero each element with probability ``p`` and scale the rest, without storing a mask.

    .. math:: y_i = x_i \, m_i / (1 - p), \quad m_i \sim \text{Bernoulli}(1 - p)

    One pass computes the result. It equals that of :func:`torch.nn.functional.dropout` in
    distribution, not bit for bit. The mask is a function of torch's seed, its Philox offset and the
    place of the element in memory, so the backward pass draws it again. The graph keeps two
    integers. The rate is exact to 2**-32. Where the kernels do not run (see
    :func:`lightning_kernels.route`), the function calls torch's.

    Args:
        input: Tensor of any shape and strides, floating point.
        p: Probability of zeroing an element: a number, or a tensor of one float32 on the device of
            ``input``. Only the device reads the tensor. If its value changes, functions are not
            recompiled, the host does not wait, and captured CUDA graphs use the new value. The
            value must not change between the forward and the backward pass.
        training: Whether to drop. Otherwise ``input`` itself is returned.
        inplace: Whether to write the result over ``input``.

    Returns:
        Tensor of the shape and dtype of ``input``, and of its strides if ``input`` is dense. It is
        ``input`` itself if nothing is dropped. As in torch, dropped nan and infinity become nan.

    Raises:
        RuntimeError: If ``input`` is not floating point and ``p`` is neither 0 nor 1 (torch's own
            error). If ``p`` is a tensor, but not one float32 on the device of ``input`` without
            gradient.
        TypeError: If ``input`` is not a tensor.
        ValueError: If ``p`` is outside ``[0, 1]`` or nan.

    Example:
        >>> from lightning_kernels import dropout
        >>> dropout(torch.ones(1000), 0.5).unique()  # dropped, or scaled by 2
        tensor([0., 2.])

    References:
        Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from
        overfitting"; Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """
    p, rate = resolve_rate("dropout", p, input)
    if not training or (p == 0.0 and rate is None):
        return input
    if runs_triton(input) and pays("dropout", input):
        return drop_elements(input, p, rate, False, inplace)
    if rate is None:
        # torch.nn.functional.dropout calls these functions too, after checks in Python.
        return call_torch(torch.dropout_ if inplace else torch.dropout, input, p, True)
    factor = aten_factor(input, input.shape, rate)
    return input.mul_(factor) if inplace else input * factor


def alpha_dropout(
    input: Tensor, p: float | Tensor = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    r"""Set each element to SELU's saturation value with probability ``p``; keep mean and variance.

    .. math:: y_i = a \, (x_i m_i + \alpha' (1 - m_i)) + b, \quad m_i \sim \text{Bernoulli}(1 - p)

    Here :math:`\alpha' = -1.7581` is the limit of SELU at minus infinity,
    :math:`a = ((1 - p)(1 + p \alpha'^2))^{-1/2}` and :math:`b = -a p \alpha'`. So an input of mean
    0 and variance 1 keeps both. Arguments, results and errors are those of :func:`dropout`. The
    result equals that of :func:`torch.nn.functional.alpha_dropout` in distribution.

    Example:
        >>> from lightning_kernels import alpha_dropout
        >>> y = alpha_dropout(torch.randn(100_000), 0.2, training=True)
        >>> bool(y.mean().abs() < 0.05), bool((y.std() - 1).abs() < 0.05)  # as before dropout
        (True, True)

    References:
        Klambauer et al., 2017, "Self-normalizing neural networks", arXiv:1706.02515.
    """
    p, rate = resolve_rate("alpha_dropout", p, input)
    if not training or (p == 0.0 and rate is None):
        return input
    if runs_triton(input) and pays("dropout", input, "alpha"):
        return drop_elements(input, p, rate, True, inplace)
    if rate is None:
        return call_torch(torch.alpha_dropout_ if inplace else torch.alpha_dropout, input, p, True)
    return aten_alpha_dropout(input, input.shape, rate, inplace)


def aten_alpha_dropout(
    x: Tensor, shape: list[int] | torch.Size, rate: Tensor, inplace: bool
) -> Tensor:
    """Compute alpha dropout by torch's functions. The rate is a tensor, the mask has ``shape``."""
    kept = aten_factor(x, shape, rate) != 0
    scale = torch.where(rate < 1, ((1 - rate) * (1 + rate * _SATURATION**2)).rsqrt(), 0.0)
    factor = torch.where(kept, scale, 0.0).to(x.dtype)
    shift = torch.where(kept, -rate, 1 - rate) * scale * _SATURATION
    return (x.mul_(factor) if inplace else x * factor).add_(shift.to(x.dtype))


def drop_elements(x: Tensor, p: float, rate: Tensor | None, alpha: bool, inplace: bool) -> Tensor:
    """Drop elements of ``x`` by the kernel, with the next random words of torch's generator."""
    run = dropout_operator.in_place if inplace else dropout_operator
    return run(x, p, rate, alpha, False, *reserve(x))
