"""Dropout of whole channels: one draw for each, and no mask in memory."""

import warnings
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import cdiv, is_traced, launch, runs_triton
from lightning_kernels._core.operator import Operator
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
from lightning_kernels._dropout.dropout import _run as drop_elements
from lightning_kernels._dropout.dropout import (
    alpha_constants,
    aten_alpha_dropout,
    check_floating,
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
    """Store ``x * scale + shift`` where the channel's word reaches ``threshold``, else a constant.

    Channels are the rows of one matrix, or the columns of a matrix for each sample.
    """
    columns = columns // ALIGNMENT * ALIGNMENT  # tells the compiler what it is a multiple of
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
    """Write the dropout of ``x`` to ``y``, which may be ``x``: equal strides, served ones."""
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
        ALPHA=alpha, GRADIENT=gradient, CHANNELS_LAST=channels_last, **tile,
    )  # fmt: skip


def _is_served(x: Tensor, leading: int) -> bool:
    """Return whether memory holds ``x`` channel by channel, or its channels innermost."""
    return x.is_contiguous() or x.movedim(leading - 1, -1).is_contiguous()


def _forward(x: Tensor, leading: int, *options: Any) -> Tensor:
    y = _fake(x, leading)
    _launch(x if x.stride() == y.stride() else y.copy_(x), y, leading, *options)
    return y


def _forward_in_place(ctx: Any, x: Tensor, *options: Any) -> Tensor:
    _launch(x, x, *options)
    ctx.mark_dirty(x)
    _setup_context(ctx, (x, *options), x)
    return x


def _fake(x: Tensor, leading: int, *options: Any) -> Tensor:
    y = torch.empty_like(x)  # dense, and of x's strides if x is dense
    if _is_served(y, leading):
        return y
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.leading, ctx.p, rate, ctx.alpha, _, state, ctx.seed, ctx.offset = inputs
    ctx.save_for_backward(rate, state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Apply the same mask: dropout is linear, so it is its own gradient, and theirs in turn.

    The mask belongs to the channels, so the gradient may come in another layout than x.
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
)


class _ChannelDropoutInPlace(torch.autograd.Function):
    """Dropout of channels written over its input, in eager mode."""

    forward = staticmethod(_forward_in_place)
    backward = staticmethod(_backward)


def dropout1d(
    x: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    r"""Zero each channel with probability ``p`` and scale the rest, in one pass and with no mask.

    .. math:: y_{nc} = x_{nc} \, m_{nc} / (1 - p), \quad m_{nc} \sim \text{Bernoulli}(1 - p)

    Equal to :func:`torch.nn.functional.dropout1d` in distribution, not bit for bit. The mask is a
    function of torch's seed, its Philox offset and the channel's number ``n * C + c``, the same in
    either layout, so the backward pass computes it again: nothing is kept but two integers. For the
    arguments and errors see also :func:`lightning_kernels.dropout`. Where the kernels do not run
    (see :func:`lightning_kernels.route`) this is torch's own function.

    Args:
        x: ``(N, C, L)`` or ``(C, L)``, floating point.
        p: Probability of zeroing a channel, or a tensor that holds it.
        training: When false, return ``x`` itself.
        inplace: Write the result over ``x``.

    Returns:
        Tensor with the shape and dtype of ``x``, and its strides if its elements fill a stretch of
        memory channel by channel or with the channels innermost; contiguous otherwise. As in torch,
        nan and infinity stay nan where dropped.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]`` or nan.
        RuntimeError: If ``x`` has another number of dimensions; if it is not floating point and
            something is to be dropped; if ``p`` is another tensor than it may be.

    References:
        Tompson et al., 2015, "Efficient object localization using convolutional networks",
        arXiv:1411.4280.
    """
    if x.dim() not in (2, 3):
        raise RuntimeError(
            f"dropout1d expects x of shape (N, C, L) or (C, L), but got {list(x.shape)}"
        )
    return _drop_channels("dropout1d", x, x.dim() - 1, p, training, inplace)


def dropout2d(
    x: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero each channel of ``(N, C, H, W)``: see :func:`dropout1d`.

    As :func:`torch.nn.functional.dropout2d` does, it takes three dimensions for ``(N, C, L)`` and
    warns; it warns of any other number too, and drops what the first two count.
    """
    if x.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input, taken for (N, C, L): call dropout1d for it, or give"
            " (C, H, W) a batch dimension",
            stacklevel=2,
        )
    elif x.dim() != 4:
        _warn_of_dimensions("dropout2d", x, "(N, C, H, W)")
    return _drop_channels("dropout2d", x, 2, p, training, inplace)


def dropout3d(
    x: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero each channel of ``(N, C, D, H, W)`` or ``(C, D, H, W)``: see :func:`dropout1d`.

    As :func:`torch.nn.functional.dropout3d` does, it warns of any other number of dimensions, and
    drops what the first counts.
    """
    if x.dim() not in (4, 5):
        _warn_of_dimensions("dropout3d", x, "(N, C, D, H, W) or (C, D, H, W)")
    return _drop_channels("dropout3d", x, 2 if x.dim() == 5 else 1, p, training, inplace)


def feature_alpha_dropout(
    x: Tensor, p: float | Tensor = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    r"""Set each channel to SELU's saturation value with probability ``p``; keep mean and variance.

    .. math:: y_{nc} = a \, (x_{nc} m_{nc} + \alpha' (1 - m_{nc})) + b

    for ``x`` of shape ``(N, C, *)``: :func:`lightning_kernels.alpha_dropout` with one draw for each
    channel of each sample, as :func:`torch.nn.functional.feature_alpha_dropout`. For the arguments,
    the layouts and the errors see :func:`dropout1d`.
    """
    return _drop_channels("feature_alpha_dropout", x, 2, p, training, inplace, alpha=True)


def _warn_of_dimensions(function: str, x: Tensor, expected: str) -> None:
    warnings.warn(
        f"{function}: Received a {x.dim()}-D input, which torch is to refuse: expected {expected}",
        stacklevel=3,
    )


def _drop_channels(
    function: str, x: Tensor, leading: int, p: float | Tensor, training: bool, inplace: bool,
    alpha: bool = False,
) -> Tensor:  # fmt: skip
    """Drop with one draw for each index of the ``leading`` first dimensions."""
    p, rate = resolve_rate(function, p, x)
    if not training or (p == 0.0 and rate is None):
        return x
    check_floating(function, x)
    if x.dim() < leading:
        raise RuntimeError(
            f"{function} expects at least {leading} dimensions, but got {list(x.shape)}"
        )
    if not runs_triton(x):
        return _aten(x, leading, p, rate, alpha, inplace)
    if x.is_contiguous() and x.shape[leading:].numel() == 1:
        return drop_elements(x, p, rate, alpha, inplace)  # four draws to a call, and in their order
    options = (leading, p, rate, alpha, False, *reserve(x))
    if not inplace:
        return _channel_dropout(x, *options)
    if is_traced(x) or not _is_served(x, leading):
        return x.copy_(_channel_dropout(x, *options))
    return _ChannelDropoutInPlace.apply(x, *options)


def _aten(
    x: Tensor, leading: int, p: float, rate: Tensor | None, alpha: bool, inplace: bool
) -> Tensor:
    """Call torch's function; compose it if the rate is a tensor."""
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
        return function(x, p, True)
    y = function(x.unsqueeze(0), p, True)  # a sample without its batch: the channels come first
    return x if inplace else y.squeeze(0)
