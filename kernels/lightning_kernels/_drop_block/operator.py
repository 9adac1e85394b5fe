"""DropBlock as an operator. One launch draws the mask as bits, another launch applies it."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.launch import cdiv, launch, multiprocessor_count, next_power_of_2
from lightning_kernels._core.layout import CHANNELS_LAST, to_dense
from lightning_kernels._core.operator import Operator
from lightning_kernels._drop_block.kernels import _drop_block_apply_kernel, _drop_block_mask_kernel
from lightning_kernels._drop_block.layout import (
    Cut,
    Sizes,
    cut_of,
    mean_gap,
    pieces_of,
    seeds_per_rate,
)

# Programs per multiprocessor that draw the mask. Each stores a count of dropped elements, and every
# program that applies the mask sums all counts. So their number is small.
_PROGRAMS = 3


def _programs(x: Tensor, cut: Cut, per_channel: bool) -> int:
    """Return the number of programs that draw the mask."""
    planes = x.shape[0] * (x.shape[1] if per_channel else 1)
    depth, height = cut.volume[:2]
    tiles = cdiv(planes, cut.mask_tile["PLANES"]) * cdiv(depth * height, cut.mask_tile["ROWS"])
    return min(tiles, _PROGRAMS * multiprocessor_count(x.device))


def _allocate(x: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Allocate the words of the mask, and a count for each program that may draw the mask."""
    pieces, piece = pieces_of(x.shape[-1])
    dtype = torch.uint8 if piece <= 8 else torch.int16 if piece <= 16 else torch.int32
    planes = x.shape[0] * (x.shape[1] if per_channel else 1)
    words = x.new_empty(planes * x.shape[2:-1].numel() * pieces, dtype=dtype)
    programs = _PROGRAMS * multiprocessor_count(x.device)
    return words, x.new_empty(programs, dtype=torch.int32)


def _draw(
    x: Tensor, words: Tensor, counts: Tensor, p: float, rate: Tensor | None, block: Sizes,
    per_channel: bool, channels_last: bool, state: Tensor | None, seed: int, offset: int,
) -> None:  # fmt: skip
    """Draw the mask: write its bits to ``words``, in the memory layout of ``x``, and ``counts``."""
    cut = cut_of(x.shape[1], tuple(x.shape[2:]), block, x.element_size())
    channels = x.shape[1] if per_channel else 1
    ratio = seeds_per_rate(tuple(x.shape[2:]), block)
    launch(
        _drop_block_mask_kernel, (_programs(x, cut, per_channel),), x.device,
        words, counts, rate, state, mean_gap(p * ratio), ratio, seed, offset,
        x.shape[0] * channels, channels, *cut.volume, *cut.pieces, **cut.mask_tile,
        CHANNELS_LAST=channels_last and per_channel,
    )  # fmt: skip


def _apply(
    x: Tensor, y: Tensor, words: Tensor, counts: Tensor, block: Sizes, eps: float,
    per_channel: bool, channels_last: bool,
) -> None:  # fmt: skip
    """Write ``x``, masked and rescaled, to ``y``. Both are contiguous or both channels last."""
    cut = cut_of(x.shape[1], tuple(x.shape[2:]), block, x.element_size())
    samples, channels = x.shape[:2]
    (depth, height, width), (pieces, piece) = cut.volume[:3], cut.pieces
    tile = cut.last_tile if channels_last else cut.flat_tile
    if channels_last:
        grid = samples * depth * height * pieces * cdiv(channels, tile["TILE"][1])
    else:
        grid = cdiv(x.numel(), tile["TILE"][0])
    total = x.numel() if per_channel else x.numel() // channels
    launch(
        _drop_block_apply_kernel, (grid,), x.device,
        x, y, words, counts, _programs(x, cut, per_channel), total, eps, x.numel(), channels,
        depth * height, width, pieces, piece, COUNTS=next_power_of_2(counts.numel()), **tile,
        SHARED=not per_channel, CHANNELS_LAST=channels_last,
    )  # fmt: skip


def _forward(
    x: Tensor, p: float, rate: Tensor | None, block: list[int], eps: float, per_channel: bool,
    *stream: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output, the words of the mask, and each program's count of set bits."""
    y, words, counts = _fake(x, p, rate, block, eps, per_channel, *stream)
    source, edges, last = to_dense(x), tuple(block), _is_channels_last(x)
    _draw(source, words, counts, p, rate, edges, per_channel, last, *stream)
    target = y if y.stride() == source.stride() else torch.empty_like(source)
    _apply(source, target, words, counts, edges, eps, per_channel, last)
    return y if target is y else y.copy_(target), words, counts


def _forward_in_place(
    x: Tensor, p: float, rate: Tensor | None, block: list[int], eps: float, per_channel: bool,
    *stream: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    words, counts = _allocate(x, per_channel)
    edges, last = tuple(block), _is_channels_last(x)
    _draw(x, words, counts, p, rate, edges, per_channel, last, *stream)
    _apply(x, x, words, counts, edges, eps, per_channel, last)
    return x, words, counts


def _fake(
    x: Tensor, p: float, rate: Tensor | None, block: list[int], eps: float, per_channel: bool,
    *stream: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), *_allocate(x, per_channel)


def _is_channels_last(x: Tensor) -> bool:
    """Return whether the kernels read ``x`` as channels last."""
    return not to_dense(x).is_contiguous()


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, _, _, block, eps, per_channel, *_ = inputs
    ctx.save_for_backward(*output[1:])
    ctx.arguments = block, eps, per_channel, _is_channels_last(x)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * 8
    if grad is None:
        return None, *rest
    return _drop_block_backward(grad, *ctx.saved_tensors, *ctx.arguments), *rest


def _forward_of_backward(
    grad: Tensor, words: Tensor, counts: Tensor, block: list[int], eps: float, per_channel: bool,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    """Return the gradient, masked and rescaled, in the memory layout of the mask."""
    y = _fake_of_backward(grad, words, counts, block, eps, per_channel, channels_last)
    grad = grad.contiguous(memory_format=_format(grad, channels_last))
    _apply(grad, y, words, counts, tuple(block), eps, per_channel, channels_last)
    return y


def _fake_of_backward(
    grad: Tensor, words: Tensor, counts: Tensor, block: list[int], eps: float, per_channel: bool,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    return torch.empty_like(grad, memory_format=_format(grad, channels_last))


def _format(x: Tensor, channels_last: bool) -> torch.memory_format:
    return CHANNELS_LAST[x.dim()] if channels_last else torch.contiguous_format


def _setup_context_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, words, counts, *ctx.arguments = inputs
    ctx.save_for_backward(words, counts)


def _backward_of_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Apply the same mask to ``grad``: for a given mask DropBlock is linear."""
    return _drop_block_backward(grad, *ctx.saved_tensors, *ctx.arguments), *(None,) * 6


drop_block_operator = Operator(
    "drop_block",
    "(Tensor x, float p, Tensor? rate, int[] block, float eps, bool per_channel, Tensor? state,"
    " int seed, int offset) -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    in_place=_forward_in_place,
    fits_in_place=lambda x, *options: to_dense(x) is x,
)


_drop_block_backward = Operator(
    "drop_block_backward",
    "(Tensor grad, Tensor words, Tensor counts, int[] block, float eps, bool per_channel,"
    " bool channels_last) -> Tensor",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
    setup_context=_setup_context_of_backward,
    backward=_backward_of_backward,
)
