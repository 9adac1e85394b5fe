"""Stochastic depth: drop the branch of a sample, scale it, add the residual; one pass."""

from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import (
    cdiv,
    launch,
    multiprocessor_count,
    norm_runs_triton,
    runs_triton,
)
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.random import reserve
from lightning_kernels._core.rate import aten_factor, resolve_rate, survivors_scale, threshold_of
from lightning_kernels._core.tiles import tile_of
from lightning_kernels._dropout.dropout import check_floating, with_strides
from lightning_kernels._row_norm.kernels import _sum_partials_kernel
from lightning_kernels._stochastic_depth.kernels import (
    _stochastic_depth_backward_kernel,
    _stochastic_depth_kernel,
)

_PROGRAMS = 2  # of the gradients' kernel that a multiprocessor holds: 8 warps of 128 registers each


def _matrix(y: Tensor, row_mode: bool, dim: int) -> tuple[tuple[int, int, int, int], bool]:
    """Return how the kernels see ``y``, dense with its samples one after the other.

    Args:
        y: The output.
        row_mode: Whether there is a draw for each index of the first dimension.
        dim: The dimension that the layer scale belongs to, -1 for one channel.

    Returns:
        Rows, columns, rows of a sample and channels; and whether the channels are the columns, not
        every ``channels``-th row.
    """
    samples = y.shape[0] if row_mode else 1
    numel = y.numel()
    if dim < 0:
        return (samples, numel // samples, 1, 1), False
    channels, columns = y.shape[dim], y.stride(dim)
    channels_last = columns == 1 and (dim > 0 or not row_mode)
    if channels_last:
        columns = channels
    rows = numel // columns
    return (rows, columns, rows // samples, channels), channels_last


def _forward(
    x: Tensor, residual: Tensor | None, layer_scale: Tensor | None, dim: int, row_mode: bool,
    drops: bool, skips: bool, p: float, rate: Tensor | None, dtype: torch.dtype,
    state: Tensor | None, seed: int, offset: int,
) -> Tensor:  # fmt: skip
    y = _fake(x, residual, layer_scale, dim, row_mode, drops, skips, p, rate, dtype)
    x = with_strides(x, y.stride())
    residual = None if residual is None else with_strides(residual, y.stride())
    layer_scale = None if layer_scale is None else layer_scale.contiguous()
    sizes, channels_last = _matrix(y, row_mode, dim)
    tile = tile_of(*sizes[:2])
    launch(
        _stochastic_depth_kernel,
        (cdiv(sizes[0], tile["ROWS"]) * cdiv(sizes[1], tile["COLUMNS"]),), x.device,
        x, residual, layer_scale, y, *sizes, threshold_of(p), survivors_scale(p), rate,
        state, seed, offset, DROPS=drops, SKIPS=skips, CHANNELS_LAST=channels_last, **tile,
    )  # fmt: skip
    return y


def _fake(
    x: Tensor, residual: Tensor | None, layer_scale: Tensor | None, dim: int, row_mode: bool,
    drops: bool, skips: bool, p: float, rate: Tensor | None, dtype: torch.dtype, *_: Any,
) -> Tensor:  # fmt: skip
    """Allocate the output: with the strides of ``x`` if its samples lie one after the other."""
    y = torch.empty_like(x, dtype=dtype)
    if row_mode and x.shape[0] > 1 and y.stride(0) * x.shape[0] != y.numel():
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return y


def _forward_of_backward(
    grad: Tensor, x: Tensor, layer_scale: Tensor, dim: int, row_mode: bool, drops: bool,
    skips: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs_x: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, an empty tensor if not needed, and of the layer scale."""
    grad_x, grad_layer_scale = _fake_of_backward(
        grad, x, layer_scale, dim, row_mode, drops, skips, p, rate, state, seed, offset, needs_x
    )
    x = with_strides(x, grad.stride())
    sizes, channels_last = _matrix(grad, row_mode, dim)
    rows, columns, _, channels = sizes
    tile = tile_of(rows if channels_last else channels, columns, num_warps=8)
    if channels_last:
        groups, tiles = cdiv(columns, tile["COLUMNS"]), cdiv(rows, tile["ROWS"])
    else:
        groups = cdiv(channels, tile["ROWS"])
        tiles = rows // channels * cdiv(columns, tile["COLUMNS"])
    splits = max(1, min(tiles, _PROGRAMS * multiprocessor_count(x.device) // groups))
    partial = x.new_empty((splits, channels), dtype=torch.float32)
    launch(
        _stochastic_depth_backward_kernel, (groups * splits,), x.device,
        grad, x, layer_scale.contiguous(), grad_x if needs_x else None, partial, *sizes, groups,
        threshold_of(p), survivors_scale(p), rate, state, seed, offset,
        DROPS=drops, SKIPS=skips, CHANNELS_LAST=channels_last, **tile,
    )  # fmt: skip
    launch(
        _sum_partials_kernel, (cdiv(channels, 16), 1), x.device,
        partial, None, grad_layer_scale, None, splits, channels, ROWS=128, COLUMNS=16, num_warps=4,
    )  # fmt: skip
    return grad_x, grad_layer_scale


def _fake_of_backward(
    grad: Tensor, x: Tensor, layer_scale: Tensor, dim: int, row_mode: bool, drops: bool,
    skips: bool, p: float, rate: Tensor | None, state: Tensor | None, seed: int, offset: int,
    needs_x: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(grad, dtype=x.dtype) if needs_x else x.new_empty(0)
    return grad_x, torch.empty_like(layer_scale, memory_format=torch.contiguous_format)


_stochastic_depth_backward = Operator(
    "stochastic_depth_backward",
    "(Tensor grad, Tensor x, Tensor layer_scale, int dim, bool row_mode, bool drops, bool skips,"
    " float p, Tensor? rate, Tensor? state, int seed, int offset, bool needs_x)"
    " -> (Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, layer_scale, *ctx.options, rate, _, state, ctx.seed, ctx.offset = inputs
    ctx.dtype, ctx.strides = x.dtype, output.stride()
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, layer_scale, rate, state)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Scale the gradient as the branch was; the residual's is the gradient itself."""
    x, layer_scale, rate, state = ctx.saved_tensors
    needs_x, needs_residual, needs_layer_scale = ctx.needs_input_grad[:3]
    place = state, ctx.seed, ctx.offset
    dense = with_strides(grad, ctx.strides)
    grad_x = grad_layer_scale = None
    if needs_layer_scale and not torch.is_grad_enabled():
        grad_x, grad_layer_scale = _stochastic_depth_backward(
            dense, x, layer_scale, *ctx.options, rate, *place, needs_x
        )
        grad_x = grad_x if needs_x else None
    else:
        if needs_x:
            grad_x = _stochastic_depth(
                dense, None, layer_scale, *ctx.options, rate, ctx.dtype, *place
            )
        if needs_layer_scale:  # create_graph=True: in terms that autograd can follow
            _, *options = ctx.options
            branch = _stochastic_depth(x, None, None, -1, *options, rate, torch.float32, *place)
            products = (grad.float() * branch).sum_to_size(layer_scale.shape)
            grad_layer_scale = products.to(layer_scale.dtype)
    return grad_x, grad if needs_residual else None, grad_layer_scale, *(None,) * 10


_stochastic_depth = Operator(
    "stochastic_depth",
    "(Tensor x, Tensor? residual, Tensor? layer_scale, int dim, bool row_mode, bool drops,"
    " bool skips, float p, Tensor? rate, ScalarType dtype, Tensor? state, int seed, int offset)"
    " -> Tensor",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def stochastic_depth(
    x: Tensor,
    p: float | Tensor,
    mode: str,
    training: bool = True,
    *,
    residual: Tensor | None = None,
    layer_scale: Tensor | None = None,
) -> Tensor:
    r"""Drop the branch ``x`` of each sample with probability ``p``, and add ``residual``.

    .. math:: y_n = r_n + \frac{m_n}{1 - p} \, \lambda \odot x_n,
        \quad m_n \sim \text{Bernoulli}(1 - p)

    in one pass, where in evaluation :math:`m_n / (1 - p)` is 1. The first arguments are those of
    ``torchvision.ops.stochastic_depth``, which it equals in distribution, not bit for bit. The draw
    of a sample is a function of torch's seed, its Philox offset and the sample's number, so the
    backward pass makes it again and keeps nothing, or with a ``layer_scale`` that requires a
    gradient ``x`` alone. That gradient is summed in float32 in a fixed order.

    With a residual the kernels do not read what is dropped, forward or backward: a branch that is
    nan adds nothing where it is dropped. Without a residual, and where the kernels do not run (see
    :func:`lightning_kernels.route`), it is multiplied by 0 as torchvision does, and nan stays nan.

    Args:
        x: The branch, ``(N, *)``, floating point.
        p: Probability of dropping it, or a tensor that holds it: see
            :func:`lightning_kernels.dropout`.
        mode: ``"row"`` for a draw for each sample, ``"batch"`` for one.
        training: When false, nothing is dropped; the rest is computed all the same.
        residual: Shape of ``x``, and its type; float32 too if ``x`` has 16 bits.
        layer_scale: :math:`\lambda`, one number for each channel, of a shape that broadcasts
            against ``x`` and says which dimension that is: ``(C, 1, 1)`` for ``(N, C, H, W)``,
            ``(C,)`` for ``(N, L, C)``. In ``x``'s type or float32.

    Returns:
        Tensor with the shape of ``x`` and the dtype of ``residual``, or of ``x`` without one; with
        the strides of ``x`` if it is dense and its samples lie one after the other, contiguous
        otherwise. ``x`` itself if nothing is to be done.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]`` or nan; if ``mode`` is another.
        RuntimeError: If ``x`` is not floating point; if shapes, types or devices do not go
            together; if ``p`` is another tensor than it may be.

    References:
        Huang et al., 2016, "Deep networks with stochastic depth", arXiv:1603.09382; Touvron et al.,
        2021, "Going deeper with image transformers", arXiv:2103.17239 (layer scale).
    """
    if mode not in ("batch", "row"):
        raise ValueError(f"mode has to be either 'batch' or 'row', but got {mode}")
    p, rate = resolve_rate("stochastic_depth", p, x)
    drops = training and (p != 0.0 or rate is not None)
    if not drops and residual is None and layer_scale is None:
        return x
    _check(x, mode, residual)
    dim = -1 if layer_scale is None else _channel_dim(x, layer_scale)
    if not drops:
        p, rate = 0.0, None
    serves = runs_triton if drops else norm_runs_triton  # an addition before a norm goes with it
    if not serves(x):
        return _aten(x, mode, drops, p, rate, residual, layer_scale)
    place = reserve(x) if drops else (None, 0, 0)
    dtype = x.dtype if residual is None else residual.dtype
    return _stochastic_depth(
        x, residual, layer_scale, dim, mode == "row", drops, residual is not None, p, rate, dtype,
        *place,
    )  # fmt: skip


def _aten(
    x: Tensor, mode: str, drops: bool, p: float, rate: Tensor | None, residual: Tensor | None,
    layer_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compose the same of torch's functions: one small factor, then one pass."""
    like = x if residual is None else residual
    factor = layer_scale
    if drops:
        shape = [1] * x.dim()
        if mode == "row":
            shape[0] = x.shape[0]
        if rate is not None:
            factor = aten_factor(like, shape, rate)
        else:
            factor = like.new_empty(shape).bernoulli_(1 - p).mul_(survivors_scale(p))
        if layer_scale is not None:
            factor = factor * layer_scale
    if factor is None:
        return like + x
    factor = factor.to(like.dtype)
    return x * factor if residual is None else torch.addcmul(residual, x, factor)


def _check(x: Tensor, mode: str, residual: Tensor | None) -> None:
    check_floating("stochastic_depth", x)
    if mode == "row" and x.dim() == 0:
        raise RuntimeError("stochastic_depth expects x of shape (N, *) for mode 'row', but got []")
    if residual is not None and (
        (residual.shape, residual.device) != (x.shape, x.device)
        or not (residual.dtype == x.dtype or (residual.dtype, x.itemsize) == (torch.float32, 2))
    ):
        raise RuntimeError(
            f"stochastic_depth expects residual like x, {list(x.shape)} of {x.dtype} (or"
            f" torch.float32 for 16 bits) on {x.device}, but got {list(residual.shape)} of"
            f" {residual.dtype} on {residual.device}"
        )


def _channel_dim(x: Tensor, layer_scale: Tensor) -> int:
    """Return the dimension of ``x`` that the layer scale has a number for each index of."""
    missing = x.dim() - layer_scale.dim()
    dims = [dim + missing for dim, size in enumerate(layer_scale.shape) if size != 1]
    if missing < 0 or len(dims) > 1 or any(x.shape[d] != layer_scale.numel() for d in dims):
        raise RuntimeError(
            "stochastic_depth expects a layer_scale that broadcasts against x with one dimension of"
            f" more than 1 element, but got {list(layer_scale.shape)} for x of {list(x.shape)}"
        )
    if layer_scale.device != x.device or layer_scale.dtype not in (x.dtype, torch.float32):
        raise RuntimeError(
            f"stochastic_depth expects layer_scale of {x.dtype} (x's) or torch.float32 on"
            f" {x.device}, but got {layer_scale.dtype} on {layer_scale.device}"
        )
    return dims[0] if dims else -1
