"""The kernels of group norm's backward pass, in the terms of the forward pass's.

The gradients of weight and bias are sums over all samples and pixels. A program stores those of its
own pixels, and another kernel adds them up.
"""

from lightning_kernels._core.activation import activation_gradient
from lightning_kernels._core.row_tiles import no_pieces
from lightning_kernels._core.tiles import load_or
from lightning_kernels._core.triton import tl, triton
from lightning_kernels._group_norm.kernels import (
    SIZES,
    STAGES,
    _in_bounds,
    _load,
    _load_statistics,
    _member,
    _over_groups,
    _piece,
    _place,
    _product,
)


@triton.jit
def _load_parameters(weight_ptr, bias_ptr, channel, in_channels):
    """Return weight and bias of each channel, as rows."""
    channel, in_channels = channel[None, :], in_channels[None, :]
    weight = load_or(weight_ptr, channel, in_channels, 1.0)
    return weight, load_or(bias_ptr, channel, in_channels, 0.0)


@triton.jit
def _gradient(
    grad, x, mean, rstd, weight, bias, parameter, ACTIVATION: tl.constexpr, dtype: tl.constexpr
):
    """Return the gradient of the activation's input, and the normalised x."""
    normalised = (x.to(tl.float32) - mean) * rstd
    grad = grad.to(tl.float32)
    if ACTIVATION is not None:
        z = normalised * weight + bias
        grad = activation_gradient(grad, z, parameter, ACTIVATION, dtype)
    return grad, normalised


@triton.jit
def _sums(
    grad_ptr, x_ptr, first, splits, pixels, pixel_stride, in_channels,
    mean, rstd, weight, bias, parameter,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Return the sums of the gradient, and of its products with normalised x, as pieces."""
    HEIGHT: tl.constexpr = PIXELS * PIECES
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    products = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for walk in tl.range(first, tl.cdiv(pixels, HEIGHT), splits, num_stages=STAGES):
        start = walk * tl.full((), HEIGHT, tl.int64)
        grads = _load(
            grad_ptr, start, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT,
            CHANNELS_LAST,
        )  # fmt: skip
        tile = _load(
            x_ptr, start, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT,
            CHANNELS_LAST,
        )  # fmt: skip
        for piece in tl.static_range(PIECES):
            grad, normalised = _gradient(
                grads[piece], tile[piece], mean, rstd, weight, bias, parameter, ACTIVATION,
                grad_ptr.dtype.element_ty,
            )  # fmt: skip
            in_bounds = _in_bounds(
                start + piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
            )
            total += grad
            products = tl.fma(grad, tl.where(in_bounds, normalised, 0.0), products)
    return total, products


@triton.jit
def _store_gradients(
    grad_ptr, x_ptr, grad_x_ptr, first, splits, pixels, pixel_stride, in_channels,
    mean, rstd, weight, bias, parameter, scale, total, products,
    PIXELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store the gradient of x. The last pixels are first, like in :func:`_normalise`."""
    HEIGHT: tl.constexpr = PIXELS * PIECES
    walks = tl.cdiv(pixels, HEIGHT)
    for walk in tl.range(first, walks, splits, num_stages=STAGES):
        start = (walks - 1 - walk) * tl.full((), HEIGHT, tl.int64)
        grads = _load(
            grad_ptr, start, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT,
            CHANNELS_LAST,
        )  # fmt: skip
        tile = _load(
            x_ptr, start, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT,
            CHANNELS_LAST,
        )  # fmt: skip
        out_ptr = grad_x_ptr + start * pixel_stride
        for piece in tl.static_range(PIECES):
            in_bounds = _in_bounds(
                start + piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
            )
            grad, normalised = _gradient(
                grads[piece], tile[piece], mean, rstd, weight, bias, parameter, ACTIVATION,
                grad_ptr.dtype.element_ty,
            )  # fmt: skip
            grad = grad * scale - total - normalised * products
            grad = grad.to(grad_x_ptr.dtype.element_ty)
            tl.store(out_ptr + piece * PIXELS * pixel_stride, grad, mask=in_bounds)


@triton.jit
def _held(
    grad_ptr, x_ptr, pixels, pixel_stride, in_channels, mean, rstd, weight, bias, parameter,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Return the sums of a slab, as :func:`_sums` does, and its gradients and normalised x."""
    grads = _load(
        grad_ptr, 0, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST
    )
    tile = _load(
        x_ptr, 0, pixels, pixel_stride, in_channels, PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST
    )
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    products = tl.zeros((PIXELS, CHANNELS), tl.float32)
    passed, kept = no_pieces(), no_pieces()
    for piece in tl.static_range(PIECES):
        grad, normalised = _gradient(
            grads[piece], tile[piece], mean, rstd, weight, bias, parameter, ACTIVATION,
            grad_ptr.dtype.element_ty,
        )  # fmt: skip
        in_bounds = _in_bounds(
            piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
        )
        normalised = tl.where(in_bounds, normalised, 0.0)
        total += grad
        products = tl.fma(grad, normalised, products)
        passed += (grad,)
        kept += (normalised,)
    return total, products, passed, kept


@triton.jit
def _mean_of_groups(values, member, is_single, size, SINGLE: tl.constexpr):
    """Return for each channel the sum over the channels of its group, divided by ``size``."""
    if SINGLE:
        mean = tl.sum(values) / size
    elif is_single:
        mean = tl.zeros((1, values.shape[0]), tl.float32) + tl.sum(values) / size
    else:
        mean = _over_groups(values, member) / size
    return mean


@triton.jit
def _store_held(
    grad_x_ptr, passed, kept, pixels, pixel_stride, in_channels, scale, mean_grad, slope,
    PIXELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store the gradient of x of a slab in registers."""
    for piece in tl.static_range(PIECES):
        in_bounds = _in_bounds(
            piece * PIXELS, pixels, in_channels, PIXELS, ALIGNMENT, CHANNELS_LAST
        )
        grad = passed[piece] * scale - mean_grad - kept[piece] * slope
        grad = grad.to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + piece * PIXELS * pixel_stride, grad, mask=in_bounds)


@triton.jit(do_not_specialize=[*SIZES, "partial_stride"])
def _group_norm_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, statistics_ptr, grad_x_ptr, partial_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, partial_stride, size, eps,
    parameter,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, HELD: tl.constexpr, SINGLE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store the gradient of a slab of whole groups, and its sums for the parameters' gradients."""
    sample, start, pixel_stride, channel_stride, channel, in_channels = _place(
        tl.program_id(0), channels, pixels, slabs, width, CHANNELS, ALIGNMENT, CHANNELS_LAST
    )
    grad_ptrs = _piece(
        grad_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST
    )
    x_ptrs = _piece(x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    if grad_x_ptr is not None:
        grad_x_ptrs = _piece(
            grad_x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST
        )
    member = _member(group_size, CHANNELS)
    statistics_ptr += sample * groups + tl.program_id(0) % slabs * width // group_size
    is_single = width <= group_size
    mean, rstd = _load_statistics(
        statistics_ptr, all_groups, member, in_channels, is_single, eps, SINGLE
    )
    weight, bias = _load_parameters(weight_ptr, bias_ptr, channel, in_channels)
    if HELD:
        total, products, passed, kept = _held(
            grad_ptrs, x_ptrs, pixels, pixel_stride, in_channels, mean, rstd, weight, bias,
            parameter, PIXELS, CHANNELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
        )  # fmt: skip
    else:
        total, products = _sums(
            grad_ptrs, x_ptrs, 0, 1, pixels, pixel_stride, in_channels,
            mean, rstd, weight, bias, parameter,
            PIXELS, CHANNELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
        )  # fmt: skip
    total, products = tl.sum(total, axis=0), tl.sum(products, axis=0)
    if partial_ptr is not None:
        out_ptr = partial_ptr + sample * channels + channel
        tl.store(out_ptr, products, mask=in_channels)
        tl.store(out_ptr + partial_stride, total, mask=in_channels)
    if grad_x_ptr is not None:
        weights = load_or(weight_ptr, channel, in_channels, 1.0)
        mean_grad = _mean_of_groups(_product(total, weights), member, is_single, size, SINGLE)
        slope = _mean_of_groups(_product(products, weights), member, is_single, size, SINGLE)
        # The weights are loaded again, because few registers are left to keep them.
        scale = rstd * load_or(weight_ptr, channel[None, :], in_channels[None, :], 1.0)
        mean_grad, slope = mean_grad * rstd, slope * rstd
        if HELD:
            _store_held(
                grad_x_ptrs, passed, kept, pixels, pixel_stride, in_channels,
                scale, mean_grad, slope, PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST,
            )  # fmt: skip
        else:
            _store_gradients(
                grad_ptrs, x_ptrs, grad_x_ptrs, 0, 1, pixels,
                pixel_stride, in_channels, mean, rstd, weight, bias, parameter, scale, mean_grad,
                slope, PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
            )  # fmt: skip


@triton.jit(do_not_specialize=[*SIZES, "partial_stride"])
def _group_norm_reduce_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, statistics_ptr, partial_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, splits, partial_stride, eps,
    parameter,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store sums per channel: of the gradient times normalised x, and of the gradient."""
    split = tl.program_id(0) % splits
    sample, start, pixel_stride, channel_stride, channel, in_channels = _place(
        tl.program_id(0) // splits, channels, pixels, slabs, width,
        CHANNELS, ALIGNMENT, CHANNELS_LAST,
    )  # fmt: skip
    grad_ptrs = _piece(
        grad_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST
    )
    x_ptrs = _piece(x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    group = channel // group_size
    statistics_ptr += sample * groups
    mean, rstd = _load_statistics(statistics_ptr, all_groups, group, in_channels, False, eps, False)
    weight, bias = _load_parameters(weight_ptr, bias_ptr, channel, in_channels)
    total, products = _sums(
        grad_ptrs, x_ptrs, split, splits, pixels, pixel_stride, in_channels,
        mean, rstd, weight, bias, parameter,
        PIXELS, CHANNELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
    )  # fmt: skip
    out_ptr = partial_ptr + (sample * splits + split) * channels + channel
    tl.store(out_ptr, tl.sum(products, axis=0), mask=in_channels)
    tl.store(out_ptr + partial_stride, tl.sum(total, axis=0), mask=in_channels)


@triton.jit(do_not_specialize=[*SIZES, "partial_stride"])
def _group_norm_sum_kernel(
    partial_ptr, weight_ptr, sums_ptr, all_groups, groups, channels, group_size, splits,
    partial_stride, size, SUMS: tl.constexpr,
):  # fmt: skip
    """Merge the sums of a group's channels, times the weights, to the two means of the group."""
    group = tl.program_id(0)
    sample, first = (group // groups).to(tl.int64), group % groups * group_size
    products = tl.zeros((SUMS,), tl.float32)
    total = tl.zeros((SUMS,), tl.float32)
    for start in range(0, splits * group_size, SUMS):
        index = start + tl.arange(0, SUMS)
        in_bounds = index < splits * group_size
        channel = first + index % group_size
        weight = load_or(weight_ptr, channel, in_bounds, 1.0)
        in_ptr = partial_ptr + (sample * splits + index // group_size) * channels + channel
        products += tl.load(in_ptr, mask=in_bounds, other=0.0) * weight
        total += tl.load(in_ptr + partial_stride, mask=in_bounds, other=0.0) * weight
    tl.store(sums_ptr + group, tl.sum(products, axis=0) / size)
    tl.store(sums_ptr + all_groups + group, tl.sum(total, axis=0) / size)


@triton.jit(do_not_specialize=SIZES)
def _group_norm_apply_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, statistics_ptr, sums_ptr, grad_x_ptr,
    all_groups, groups, channels, pixels, slabs, width, group_size, splits, eps, parameter,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIECES: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store the gradient of a program's pixels of a slab."""
    sample, start, pixel_stride, channel_stride, channel, in_channels = _place(
        tl.program_id(0) // splits, channels, pixels, slabs, width,
        CHANNELS, ALIGNMENT, CHANNELS_LAST,
    )  # fmt: skip
    grad_ptrs = _piece(
        grad_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST
    )
    x_ptrs = _piece(x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST)
    grad_x_ptrs = _piece(
        grad_x_ptr + start, pixel_stride, channel_stride, PIXELS, CHANNELS, CHANNELS_LAST
    )
    group = channel // group_size
    statistics_ptr += sample * groups
    mean, rstd = _load_statistics(statistics_ptr, all_groups, group, in_channels, False, eps, False)
    weight, bias = _load_parameters(weight_ptr, bias_ptr, channel, in_channels)
    sums_ptr += sample * groups
    products = rstd * load_or(sums_ptr, group[None, :], in_channels[None, :], 0.0)
    total = rstd * load_or(sums_ptr + all_groups, group[None, :], in_channels[None, :], 0.0)
    _store_gradients(
        grad_ptrs, x_ptrs, grad_x_ptrs, tl.program_id(0) % splits,
        splits, pixels, pixel_stride, in_channels, mean, rstd, weight, bias, parameter,
        weight * rstd, total, products, PIXELS, PIECES, ALIGNMENT, CHANNELS_LAST, ACTIVATION,
    )  # fmt: skip
