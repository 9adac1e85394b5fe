"""DropBlock: one launch draws the mask, in bits, and another applies it."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._batch_norm.layout import _CHANNELS_LAST, dense
from lightning_kernels._core.dispatch import (
    cdiv,
    is_traced,
    launch,
    multiprocessor_count,
    next_power_of_2,
    runs_triton,
)
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.random import reserve
from lightning_kernels._core.rate import resolve_rate
from lightning_kernels._drop_block.aten import aten_drop_block
from lightning_kernels._drop_block.kernels import _drop_block_apply_kernel, _drop_block_mask_kernel
from lightning_kernels._drop_block.layout import (
    Cut,
    Sizes,
    cut_of,
    mean_gap,
    pieces_of,
    seeds_per_rate,
)
from lightning_kernels._dropout.dropout import check_floating

_PROGRAMS = 3  # that draw on a multiprocessor: each leaves a count for all that apply to add up
_LARGEST_SAMPLE = 2**30  # elements: inside a sample the kernels count in 32 bits
_LARGEST_WIDTH = 2**14  # elements: a tile of the mask holds whole rows of four planes


def _programs(x: Tensor, cut: Cut, per_channel: bool) -> int:
    """Return how many programs draw the mask."""
    planes = x.shape[0] * (x.shape[1] if per_channel else 1)
    depth, height = cut.volume[:2]
    tiles = cdiv(planes, cut.mask_tile["PLANES"]) * cdiv(depth * height, cut.mask_tile["ROWS"])
    return min(tiles, _PROGRAMS * multiprocessor_count(x.device))


def _allocate(x: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Return memory for the bits of the mask and for as many counts as there can be."""
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
    """Write the bits of what is dropped, in the order of the memory of ``x``."""
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
    """Write ``x`` masked and rescaled to ``y``: both contiguous or channels last."""
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
    """Return the output, the bits of what is dropped, and counts of them."""
    y, words, counts = _fake(x, p, rate, block, eps, per_channel, *stream)
    source, edges, last = dense(x), tuple(block), is_channels_last(x)
    _draw(source, words, counts, p, rate, edges, per_channel, last, *stream)
    target = y if y.stride() == source.stride() else torch.empty_like(source)
    _apply(source, target, words, counts, edges, eps, per_channel, last)
    return y if target is y else y.copy_(target), words, counts


def _forward_in_place(
    ctx: Any, x: Tensor, p: float, rate: Tensor | None, block: list[int], eps: float,
    per_channel: bool, *stream: Any,
) -> Tensor:  # fmt: skip
    words, counts = _allocate(x, per_channel)
    edges, last = tuple(block), is_channels_last(x)
    _draw(x, words, counts, p, rate, edges, per_channel, last, *stream)
    _apply(x, x, words, counts, edges, eps, per_channel, last)
    ctx.mark_dirty(x)
    _save(ctx, x, block, eps, per_channel, words, counts)
    return x


def _fake(
    x: Tensor, p: float, rate: Tensor | None, block: list[int], eps: float, per_channel: bool,
    *stream: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), *_allocate(x, per_channel)


def is_channels_last(x: Tensor) -> bool:
    """Return whether the kernels see ``x`` as channels last."""
    return not dense(x).is_contiguous()


def _save(
    ctx: Any, x: Tensor, block: list[int], eps: float, per_channel: bool, words: Tensor,
    counts: Tensor,
) -> None:  # fmt: skip
    ctx.save_for_backward(words, counts)
    ctx.arguments = block, eps, per_channel, is_channels_last(x)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, _, _, block, eps, per_channel, *_ = inputs
    _save(ctx, x, block, eps, per_channel, *output[1:])
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
    """Return ``grad`` masked and rescaled, in the layout of the mask."""
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
    return _CHANNELS_LAST[x.dim()] if channels_last else torch.contiguous_format


def _setup_context_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, words, counts, *ctx.arguments = inputs
    ctx.save_for_backward(words, counts)


def _backward_of_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Apply the same mask: given it, DropBlock is linear."""
    return _drop_block_backward(grad, *ctx.saved_tensors, *ctx.arguments), *(None,) * 6


_drop_block = Operator(
    "drop_block",
    "(Tensor x, float p, Tensor? rate, int[] block, float eps, bool per_channel, Tensor? state,"
    " int seed, int offset) -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
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


class _DropBlockInPlace(torch.autograd.Function):
    """DropBlock written over its input, in eager mode."""

    forward = staticmethod(_forward_in_place)
    backward = staticmethod(_backward)


def drop_block2d(
    x: Tensor,
    p: float | Tensor,
    block_size: int,
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    per_channel: bool = True,
) -> Tensor:
    r"""Zero random blocks of each map, about a share ``p`` of it, and rescale what is kept.

    .. math:: y = x \, m \, \frac{|m|}{\epsilon + \sum m}, \quad
        \gamma = p \, \frac{H W}{k_h k_w (H - k_h + 1) (W - k_w + 1)}

    Each of the (H - k_h + 1) (W - k_w + 1) places that a block of k_h x k_w has within the map is
    dropped with probability gamma, independently; the mask m is 0 where such a block lies, so
    blocks that overlap make the share a little less than ``p``. The scale is one number for the
    whole batch, of the exact count of what is kept; where nothing is kept the result is 0.

    Equal to :func:`torchvision.ops.drop_block2d` in distribution wherever that is defined, that is
    for odd blocks within the map. Here an even block has its size as well, and one that is larger
    than the map is cut to it in each direction by itself: ``k_h = min(block_size, H)`` and
    ``k_w = min(block_size, W)``, as in timm; torchvision would make it a square.

    The mask is a function of torch's seed, its Philox offset, the plane and the place in it: the
    same in both memory layouts. Kept for the backward pass are its bits, each row of which is
    padded to 8, 16 or a multiple of 32, and counts of them. Where the kernels do not run (see
    :func:`lightning_kernels.route`), for rows above 2**14 and samples above 2**30 elements, this is
    a composition of torch's functions: on a CPU one that draws the few seeds alone and keeps one
    byte for each element, under a compiler or on another device one that draws for each place.

    Args:
        x: Tensor of shape (N, C, H, W), floating point, of any strides.
        p: Share to drop, between 0 and 1. As a tensor (one float32 on ``x``'s device) it is read
            on the device alone: see :func:`lightning_kernels.dropout`.
        block_size: Edge of a block.
        inplace: Write the result over ``x``.
        eps: Added to the count of what is kept.
        training: When false, return ``x`` itself.
        per_channel: Whether each channel has blocks of its own, as in torchvision; else a sample
            has the same in all channels, as in the paper.

    Returns:
        Tensor with the shape, dtype and (if ``x`` is dense) strides of ``x``; ``x`` itself if
        nothing is to be dropped. nan and infinity become nan where dropped, as in torchvision.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]`` or nan, ``x`` has not four dimensions,
            ``block_size`` is no positive integer, or ``eps`` is negative.
        RuntimeError: If ``x`` is not floating point and something is to be dropped; if ``p`` is
            another tensor than it may be.

    References:
        Ghiasi et al., 2018, "DropBlock: a regularization method for convolutional networks",
        arXiv:1810.12890.
    """
    return _run("drop_block2d", 4, x, p, block_size, inplace, eps, training, per_channel)


def drop_block3d(
    x: Tensor,
    p: float | Tensor,
    block_size: int,
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    per_channel: bool = True,
) -> Tensor:
    r"""Zero random blocks of each volume, about a share ``p`` of it, and rescale what is kept.

    :func:`drop_block2d` for ``x`` of shape (N, C, D, H, W) and blocks with an edge more, equal to
    :func:`torchvision.ops.drop_block3d` in distribution wherever that is defined.
    """
    return _run("drop_block3d", 5, x, p, block_size, inplace, eps, training, per_channel)


def _run(
    function: str, dimensions: int, x: Tensor, p: float | Tensor, block_size: int, inplace: bool,
    eps: float, training: bool, per_channel: bool,
) -> Tensor:  # fmt: skip
    p, rate = resolve_rate(function, p, x)
    if x.dim() != dimensions:
        raise ValueError(f"{function} expects {dimensions} dimensions, but got {list(x.shape)}")
    if not isinstance(block_size, int) or block_size < 1:
        raise ValueError(
            f"{function} expects block_size as an integer of at least 1, but got {block_size!r}"
        )
    if not eps >= 0:
        raise ValueError(f"{function} expects eps of at least 0, but got {eps}")
    if not training or (p == 0.0 and rate is None):
        return x
    check_floating(function, x)
    if x.numel() == 0:
        return x if inplace else x.clone()
    block = [min(block_size, size) for size in x.shape[2:]]
    if not (runs_triton(x) and _fits(x)):
        ratio = seeds_per_rate(tuple(x.shape[2:]), tuple(block))
        gamma = p * ratio if rate is None else rate * ratio
        return aten_drop_block(x, gamma, tuple(block), inplace, eps, per_channel)
    arguments = (p, rate, block, float(eps), per_channel, *reserve(x))
    if not inplace:
        return _drop_block(x, *arguments)[0]
    if is_traced(x) or dense(x) is not x:
        return x.copy_(_drop_block(x, *arguments)[0])
    return _DropBlockInPlace.apply(x, *arguments)


def _fits(x: Tensor) -> bool:
    """Return whether the kernels can count in ``x``."""
    return x[0].numel() <= _LARGEST_SAMPLE and x.shape[-1] <= _LARGEST_WIDTH
