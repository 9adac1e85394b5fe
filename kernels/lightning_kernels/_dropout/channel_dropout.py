"""Dropout of whole channels, with one draw per channel. No mask is stored."""

import warnings
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.autocast import call_torch
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import runs_triton
from lightning_kernels._core.launch import cdiv, launch
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.parameters import dimensions_of
from lightning_kernels._core.random import random_rows, random_word_at, reserve
from lightning_kernels._core.rate import (
    aten_factor,
    load_rate,
    resolve_rate,
    survivors_scale,
    threshold_of,
)
from lightning_kernels._core.tiles import place_of_tile, tile_of
from lightning_kernels._core.triton import tl, triton
from lightning_kernels._dropout.dropout import (
    alpha_constants,
    aten_alpha_dropout,
    drop_elements,
    load_alpha_rate,
)


@triton.jit(do_not_specialize=["threshold", "seed", "offset"])
def _channel_dropout_kernel(
    x_ptr,
    y_ptr,
    rows,
    columns,
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
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Store ``x * scale + shift`` for kept channels, and ``dropped`` for dropped channels.

    A channel is dropped if its random word is below ``threshold``. Without ``ALPHA``, and for a
    gradient, ``shift`` and ``dropped`` count as 0.

    In the contiguous layout the tensor is one matrix, whose rows are the channels of all samples.
    In channels last each sample is a matrix, whose columns are the channels.
    """
    columns = columns // ALIGNMENT * ALIGNMENT  # unchanged: shows the compiler the alignment
    column_tiles = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * column_tiles
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    row, _, in_bounds, place = place_of_tile(
        tile // column_tiles, tile % column_tiles, rows, columns, ROWS, COLUMNS
    )
    place += sample * rows * columns
    if ALPHA:
        threshold, scale, shift, dropped = load_alpha_rate(
            rate_ptr, threshold, scale, shift, dropped
        )
    else:
        threshold, scale = load_rate(rate_ptr, threshold, scale)
    if CHANNELS_LAST:
        first = sample * columns + tile % column_tiles * COLUMNS
        word = random_rows(state_ptr, seed, offset, first, COLUMNS, ALIGNMENT % 4 == 0)
    else:
        word = random_word_at(state_ptr, seed, offset, row)
    x = tl.load(x_ptr + place, mask=in_bounds).to(tl.float32)
    y = x * tl.where(word < threshold, 0.0, scale)
    if ALPHA and not GRADIENT:
        y += tl.where(word < threshold, dropped, shift)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_bounds)


def _launch(
    x: Tensor, y: Tensor, leading: int, p: float, rate: Tensor | None, alpha: bool,
    gradient: bool, state: Tensor | None, seed: int, offset: int,
) -> None:  # fmt: skip
    """Write the dropout of ``x`` to ``y``: tensors of the same strides, or one tensor.

    ``leading`` is the number of dimensions of ``(N, C)``, 2, or of ``(C,)``, 1.
    """
    constants = alpha_constants(p) if alpha else (survivors_scale(p), 0.0, 0.0)
    samples, rows, columns = 1, x.shape[:leading].numel(), x.shape[leading:].numel()
    channels_last = not x.is_contiguous()
    if channels_last:
        channels = x.shape[leading - 1]
        samples, rows, columns = rows // channels, columns, channels
    tile = tile_of(rows, columns)
    grid = samples * cdiv(rows, tile["ROWS"]) * cdiv(columns, tile["COLUMNS"])
    launch(
        _channel_dropout_kernel, (grid,), x.device, x, y, rows, columns, threshold_of(p),
        *constants, rate, state, seed, offset,
        ALPHA=alpha, GRADIENT=alpha and gradient, CHANNELS_LAST=channels_last, **tile,
    )  # fmt: skip


def _is_served(x: Tensor, leading: int) -> bool:
    """Return whether ``x`` is contiguous, or contiguous with its channels innermost."""
    return x.is_contiguous() or x.movedim(leading - 1, -1).is_contiguous()


def _forward(x: Tensor, leading: int, *options: Any) -> Tensor:
    y = _fake(x, leading)
    _launch(x if x.stride() == y.stride() else y.copy_(x), y, leading, *options)
    return y


def _forward_in_place(x: Tensor, *options: Any) -> Tensor:
    _launch(x, x, *options)
    return x


def _fake(x: Tensor, leading: int, *options: Any) -> Tensor:
    y = torch.empty_like(x)  # always dense, with the strides of x if x is dense
    if _is_served(y, leading):
        return y
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.leading, ctx.p, rate, ctx.alpha, _, state, ctx.seed, ctx.offset = inputs
    ctx.save_for_backward(rate, state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Apply the same mask to the gradient: dropout is linear in ``x``.

    The mask depends on the index of the channel, so ``grad`` may have another layout than ``x``.
    """
    rate, state = ctx.saved_tensors
    grad_x = _channel_dropout(
        grad, ctx.leading, ctx.p, rate, ctx.alpha, True, state, ctx.seed, ctx.offset
    )
    return (grad_x, *(None,) * 8)


_channel_dropout = Operator(
    "channel_dropout",
    "(Tensor x, int leading, float p, Tensor? rate, bool alpha, bool gradient, Tensor? state,"
    " int seed, int offset) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    in_place=_forward_in_place,
    fits_in_place=lambda x, leading, *options: _is_served(x, leading),
)


def dropout1d(
    input: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    r"""Zero each channel with probability ``p`` and scale the rest, without storing a mask.

    .. math:: y_{nc} = x_{nc} \, m_{nc} / (1 - p), \quad m_{nc} \sim \text{Bernoulli}(1 - p)

    One pass computes the result. It equals that of :func:`torch.nn.functional.dropout1d` in
    distribution, not bit for bit. The mask is a function of torch's seed, its Philox offset and the
    index ``n * C + c`` of the channel, in both memory layouts, so the backward pass draws it again.
    The graph keeps two integers. Where the kernels do not run (see
    :func:`lightning_kernels.route`), the function calls torch's.

    Args:
        input: Input of shape ``(N, C, L)`` or ``(C, L)``, floating point.
        p: Probability of zeroing a channel: a number, or a tensor of one float32 on the device of
            ``input`` (see :func:`lightning_kernels.dropout`).
        training: Whether to drop. Otherwise ``input`` itself is returned.
        inplace: Whether to write the result over ``input``.

    Returns:
        Tensor of the shape and dtype of ``input``. It has the strides of ``input`` if ``input`` is
        contiguous or channels last; otherwise it is contiguous. As in torch, dropped nan and
        infinity become nan.

    Raises:
        RuntimeError: If ``input`` does not have two or three dimensions. If it is not floating
            point and ``p`` is neither 0 nor 1 (torch's own error). If ``p`` is a tensor, but not
            one float32 on the device of ``input`` without gradient.
        TypeError: If ``input`` is not a tensor.
        ValueError: If ``p`` is outside ``[0, 1]`` or nan.

    Example:
        >>> from lightning_kernels import dropout1d
        >>> y = dropout1d(torch.ones(50, 8, 10), 0.5)
        >>> y.unique(), bool((y == y[..., :1]).all())  # a channel is dropped or kept as a whole
        (tensor([0., 2.]), True)

    References:
        Tompson et al., 2015, "Efficient object localization using convolutional networks",
        arXiv:1411.4280.
    """
    dimensions = dimensions_of("dropout1d", input)
    if dimensions not in (2, 3):
        raise RuntimeError(
            f"dropout1d expects an input of shape (N, C, L) or (C, L), but got {list(input.shape)}"
        )
    return _drop_channels("dropout1d", input, dimensions - 1, p, training, inplace)


def dropout2d(
    input: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero each channel of ``input`` of shape ``(N, C, H, W)`` with probability ``p``.

    :func:`dropout1d` describes the arguments and the result. Like
    :func:`torch.nn.functional.dropout2d`, the function treats an ``input`` of three dimensions as
    ``(N, C, L)``, and warns. It also warns if ``input`` has fewer than three or more than four
    dimensions, and treats the first two dimensions as ``(N, C)``.

    Example:
        >>> from lightning_kernels import dropout2d
        >>> y = dropout2d(torch.ones(50, 8, 4, 4), 0.5)
        >>> y.amax((2, 3)).unique()  # of each channel
        tensor([0., 2.])
    """
    dimensions = dimensions_of("dropout2d", input)
    if dimensions == 3:
        warnings.warn(
            "dropout2d: Received a 3D input, taken for (N, C, L): call dropout1d for it, or give"
            " (C, H, W) a batch dimension",
            stacklevel=2,
        )
    elif dimensions != 4:
        _warn_of_dimensions("dropout2d", input, "(N, C, H, W)")
    return _drop_channels("dropout2d", input, 2, p, training, inplace)


def dropout3d(
    input: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero each channel of ``input`` of shape ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    :func:`dropout1d` describes the arguments and the result. Like
    :func:`torch.nn.functional.dropout3d`, the function warns if ``input`` does not have four or
    five dimensions, and treats the first dimension as the channels.

    Example:
        >>> from lightning_kernels import dropout3d
        >>> y = dropout3d(torch.ones(50, 8, 2, 4, 4), 0.5)
        >>> y.amax((2, 3, 4)).unique()  # of each channel
        tensor([0., 2.])
    """
    dimensions = dimensions_of("dropout3d", input)
    if dimensions not in (4, 5):
        _warn_of_dimensions("dropout3d", input, "(N, C, D, H, W) or (C, D, H, W)")
    return _drop_channels("dropout3d", input, 2 if dimensions == 5 else 1, p, training, inplace)


def feature_alpha_dropout(
    input: Tensor, p: float | Tensor = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    r"""Set each channel to SELU's saturation value with probability ``p``; keep mean and variance.

    .. math:: y_{nc} = a \, (x_{nc} m_{nc} + \alpha' (1 - m_{nc})) + b

    ``input`` has the shape ``(N, C, *)``. The function is :func:`lightning_kernels.alpha_dropout`,
    which defines :math:`a`, :math:`b` and :math:`\alpha'`, with one draw for each channel of each
    sample. It replaces :func:`torch.nn.functional.feature_alpha_dropout`. Arguments, memory layouts
    and errors are those of :func:`dropout1d`.

    Example:
        >>> from lightning_kernels import feature_alpha_dropout
        >>> y = feature_alpha_dropout(torch.randn(50, 8, 100), 0.5, training=True)
        >>> dropped = y.std(2) < 1e-6  # channels that hold one value
        >>> bool(dropped.any()), len(y[dropped].unique())
        (True, 1)
    """
    return _drop_channels("feature_alpha_dropout", input, 2, p, training, inplace, alpha=True)


def _warn_of_dimensions(function: str, x: Tensor, expected: str) -> None:
    warnings.warn(
        f"{function}: Received a {x.dim()}-D input, which torch will refuse: expected {expected}",
        stacklevel=3,
    )


def _drop_channels(
    function: str, x: Tensor, leading: int, p: float | Tensor, training: bool, inplace: bool,
    alpha: bool = False,
) -> Tensor:  # fmt: skip
    """Check the arguments, and drop channels: one draw per index of the first dimensions.

    The number of these dimensions is ``leading``: 2 for ``(N, C)``, 1 for ``(C,)``.
    """
    p, rate = resolve_rate(function, p, x)
    if not training or (p == 0.0 and rate is None):
        return x
    is_flat = x.dim() < leading  # torch takes such a tensor if it has no element to draw for
    if is_flat and x.numel() > 0 and p < 1.0:
        raise RuntimeError(
            f"{function} expects at least {leading} dimensions, but got {list(x.shape)}"
        )
    if is_flat or not (runs_triton(x) and pays("channel_dropout", x, leading, alpha)):
        return _aten(x, leading, p, rate, alpha, inplace)
    if x.is_contiguous() and x.shape[leading:].numel() == 1:
        # A channel is one element. The words are the same, but one Philox call draws four of them.
        return drop_elements(x, p, rate, alpha, inplace)
    run = _channel_dropout.in_place if inplace else _channel_dropout
    return run(x, leading, p, rate, alpha, False, *reserve(x))


def _aten(
    x: Tensor, leading: int, p: float, rate: Tensor | None, alpha: bool, inplace: bool
) -> Tensor:
    """Drop channels by torch's function, or by several functions if the rate is a tensor."""
    if rate is not None:
        shape = [*x.shape[:leading], *[1] * (x.dim() - leading)]
        if alpha:
            return aten_alpha_dropout(x, shape, rate, inplace)
        factor = aten_factor(x, shape, rate)
        return x.mul_(factor) if inplace else x * factor
    if alpha:
        function = torch.feature_alpha_dropout_ if inplace else torch.feature_alpha_dropout
    else:
        function = torch.feature_dropout_ if inplace else torch.feature_dropout
    if leading == 2:
        return call_torch(function, x, p, True)
    y = call_torch(function, x.unsqueeze(0), p, True)  # x has no batch dimension, which torch needs
    return x if inplace else y.squeeze(0)
