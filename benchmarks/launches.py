"""The calls whose machine code is tested and reported: one line for each main configuration."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lightning_kernels
from benchmarks.machine_code import Launch, record_launches

_ROWS = 8192


def _layer_norm(dtype: torch.dtype, size: int, affine: bool = True) -> None:
    x = torch.empty(_ROWS, size, device="cuda", dtype=dtype, requires_grad=True)
    weight, bias = (torch.empty(size, device="cuda", requires_grad=affine) for _ in range(2))
    y = lightning_kernels.layer_norm(x, (size,), *((weight, bias) if affine else ()))
    _backward(y, torch.empty_like(y), None)


def _channels(dtype: torch.dtype, size: int, pixels: int) -> None:
    """Normalise the channels of images that have their pixels last, as they are."""
    images = torch.empty(32, size, pixels, device="cuda", dtype=dtype, requires_grad=True)
    weight, bias = (torch.empty(size, device="cuda", requires_grad=True) for _ in range(2))
    y = lightning_kernels.layer_norm(images.transpose(1, 2), (size,), weight, bias)
    _backward(y, torch.empty_like(y), None)


def _rms_norm(dtype: torch.dtype, size: int, heads: bool = False) -> None:
    x = torch.empty(_ROWS, 3, size, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.empty(size, device="cuda", requires_grad=True)
    y = lightning_kernels.rms_norm(x[:, 1] if heads else x, (size,), weight)
    _backward(y, torch.empty_like(y), None)


def _add_norm(
    dtype: torch.dtype,
    size: int,
    norm: str = "layer_norm",
    residual_dtype: torch.dtype | None = None,
    layer_scale: bool = False,
    used: str = "yz",
    training: bool = True,
) -> None:
    x = torch.empty(32, _ROWS // 32, size, device="cuda", dtype=dtype, requires_grad=True)
    residual = torch.empty_like(x, dtype=residual_dtype or dtype, requires_grad=True)
    weight, scale = (torch.empty(size, device="cuda", requires_grad=True) for _ in range(2))
    bias = (torch.empty_like(weight, requires_grad=True),) if norm == "layer_norm" else ()
    y, z = getattr(lightning_kernels, f"add_dropout_{norm}")(
        x, residual, (size,), weight, *bias, p=0.1, drop_path=0.1,
        layer_scale=scale if layer_scale else None, training=training,
    )  # fmt: skip
    grads = (torch.empty_like(t) if name in used else None for name, t in (("y", y), ("z", z)))
    _backward(y, *grads, None)


def _batch_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channels_last: bool,
    training: bool = True,
    activation: str | None = "relu",
    residual: bool = False,
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, other = (
        torch.empty(shape, device="cuda", dtype=dtype, requires_grad=True).to(memory_format=layout)
        for _ in range(2)
    )
    mean, var = (torch.empty(shape[1], device="cuda") for _ in range(2))
    weight, bias = (torch.empty(shape[1], device="cuda", requires_grad=True) for _ in range(2))
    y = lightning_kernels.batch_norm(
        x, mean, var, weight, bias, training,
        activation=activation, residual=other if residual else None,
    )  # fmt: skip
    _backward(y, torch.empty_like(y), None, None)


def _group_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    groups: int,
    channels_last: bool,
    activation: str | None = "silu",
) -> None:
    x = torch.empty(shape, device="cuda", dtype=dtype, requires_grad=True)
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    weight, bias = (torch.empty(shape[1], device="cuda", requires_grad=True) for _ in range(2))
    y = lightning_kernels.group_norm(x, groups, weight, bias, activation=activation)
    _backward(y, torch.empty_like(y), None)


def _dropout(dtype: torch.dtype, alpha: bool = False, scheduled: bool = False) -> None:
    x = torch.empty(_ROWS, 1024, device="cuda", dtype=dtype, requires_grad=True)
    function = lightning_kernels.alpha_dropout if alpha else lightning_kernels.dropout
    y = function(x, torch.empty((), device="cuda") if scheduled else 0.1, training=True)
    _backward(y, torch.empty_like(y))


def _image(dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(32, 64, 56, 56, device="cuda", dtype=dtype, requires_grad=True)
    return x.to(memory_format=layout)


def _channel_dropout(
    dtype: torch.dtype, channels_last: bool, alpha: bool = False, scheduled: bool = False
) -> None:
    x = _image(dtype, channels_last)
    function = lightning_kernels.feature_alpha_dropout if alpha else lightning_kernels.dropout2d
    y = function(x, torch.empty((), device="cuda") if scheduled else 0.1, training=True)
    _backward(y, torch.empty_like(y))


def _stochastic_depth(
    dtype: torch.dtype, channels_last: bool, residual: bool = True, layer_scale: bool = True
) -> None:
    x, other = (_image(dtype, channels_last) for _ in range(2))
    scale = torch.empty(64, 1, 1, device="cuda", requires_grad=True)
    y = lightning_kernels.stochastic_depth(
        x, 0.1, "row",
        residual=other if residual else None, layer_scale=scale if layer_scale else None,
    )  # fmt: skip
    _backward(y, torch.empty_like(y))


def _dropout_activation(
    dtype: torch.dtype, activation: str, bias: bool = True, training: bool = True
) -> None:
    x = torch.empty(_ROWS, 3072, device="cuda", dtype=dtype, requires_grad=True)
    shift = torch.empty(3072, device="cuda", dtype=dtype, requires_grad=True) if bias else None
    y = lightning_kernels.dropout_activation(x, activation, 0.1, training, bias=shift)
    _backward(y, torch.empty_like(y))


def _weights() -> list[torch.Tensor]:
    """Return a parameter with a gradient of each type that a table can hold."""
    weights = [torch.empty(64, 64, device="cuda", dtype=dtype) for dtype in _DTYPES.values()]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    return weights


def _clip_grad(function: Callable[..., Any], norm_type: float | None = None) -> None:
    function(_weights(), 0.1, **({} if norm_type is None else {"norm_type": norm_type}))


def _clip_grad_scale() -> None:
    limit, scale = torch.empty(2, device="cuda").unbind()
    lightning_kernels.clip_grad_scale(_weights(), limit, loss_scale=scale)


def _clip_grads_with_norm() -> None:
    limit, norm = torch.empty(2, device="cuda").unbind()
    lightning_kernels.clip_grads_with_norm_(_weights(), limit, norm)


def _drop_block(
    dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool, per_channel: bool = True,
    scheduled: bool = False,
) -> None:  # fmt: skip
    x = torch.empty(shape, device="cuda", dtype=dtype, requires_grad=True)
    function = lightning_kernels.drop_block2d if len(shape) == 4 else lightning_kernels.drop_block3d
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    p = torch.empty((), device="cuda") if scheduled else 0.1
    y = function(x, p, 7 if len(shape) == 4 else 3, per_channel=per_channel)
    _backward(y, torch.empty_like(y), None, None)


@torch.no_grad()
def _backward(y: Tensor, *grads: Tensor | None) -> None:
    """Run the backward of ``y``'s own node; the engine would ask for a real device."""
    assert y.grad_fn is not None
    y.grad_fn.apply(*grads)  # type: ignore[attr-defined]


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SIZES = (96, 128, 768, 1024, 1600, 4096, 8192)
_BATCH_NORM_OPTIONS: dict[str, dict[str, Any]] = {
    "residual": {"residual": True},
    "residual, gelu": {"residual": True, "activation": "gelu"},
    "eval": {"training": False},
    "eval, silu": {"training": False, "activation": "silu"},
    "plain": {"activation": None},
}
_GROUPED = (  # held by a program each way, forward alone, and neither
    ((32, 256, 8, 8), 32), ((32, 1280, 16, 16), 32), ((32, 320, 64, 64), 32),
)  # fmt: skip
_MAPS = ((256, 512, 28, 28), (256, 1024, 14, 14), (256, 2048, 7, 7))

CALLS: dict[str, Callable[[], None]] = {
    **{
        f"layer_norm {name} {size}": functools.partial(_layer_norm, dtype, size)
        for name, dtype in _DTYPES.items()
        for size in _SIZES
    },
    **{
        f"layer_norm {name} {size}, {pixels} pixels last": functools.partial(
            _channels, dtype, size, pixels
        )
        for name, dtype in _DTYPES.items()
        for size, pixels in ((96, 3136), (192, 784), (256, 64))
    },
    **{
        f"rms_norm {name} {size}": functools.partial(_rms_norm, dtype, size)
        for name, dtype in _DTYPES.items()
        for size in (128, 4096, 16384)
    },
    "rms_norm bf16 128, heads": functools.partial(_rms_norm, torch.bfloat16, 128, heads=True),
    **{
        f"add_dropout_layer_norm {name} {size}": functools.partial(_add_norm, dtype, size)
        for name, dtype in _DTYPES.items()
        for size in _SIZES
    },
    **{
        f"add_dropout_layer_norm {name} {size}, layer scale": functools.partial(
            _add_norm, dtype, size, layer_scale=True
        )
        for name, dtype in _DTYPES.items()
        for size in (128, 768, 1600, 4096)
    },
    **{
        f"add_dropout_rms_norm bf16 {size}": functools.partial(
            _add_norm, torch.bfloat16, size, "rms_norm"
        )
        for size in (768, 4096, 8192)
    },
    **{
        f"add_dropout_layer_norm bf16 {size}, residual fp32": functools.partial(
            _add_norm, torch.bfloat16, size, residual_dtype=torch.float32
        )
        for size in (128, 768, 4096, 8192)
    },
    **{
        f"add_dropout_layer_norm bf16 768, {used} alone": functools.partial(
            _add_norm, torch.bfloat16, 768, used=used
        )
        for used in "yz"
    },
    "add_dropout_layer_norm bf16 768, evaluation": functools.partial(
        _add_norm, torch.bfloat16, 768, training=False
    ),
    "layer_norm bf16 16384": functools.partial(_layer_norm, torch.bfloat16, 16384),
    "layer_norm bf16 768, not affine": functools.partial(
        _layer_norm, torch.bfloat16, 768, affine=False
    ),
    **{
        f"batch_norm {name} {layout} {shape[1:]}": functools.partial(
            _batch_norm, dtype, shape, layout == "channels last"
        )
        for name, dtype in _DTYPES.items()
        for layout in ("channels last", "NCHW")
        for shape in ((32, 64, 56, 56), (32, 2048, 8, 8))
    },
    **{
        f"batch_norm bf16 {layout}, {name}": functools.partial(
            _batch_norm, torch.bfloat16, (32, 256, 16, 16), layout == "channels last", **options
        )
        for layout in ("channels last", "NCHW")
        for name, options in _BATCH_NORM_OPTIONS.items()
    },
    **{
        f"group_norm {name} {layout} {shape[1:]}": functools.partial(
            _group_norm, dtype, shape, groups, layout == "channels last"
        )
        for name, dtype in _DTYPES.items()
        for layout in ("channels last", "NCHW")
        for shape, groups in _GROUPED
    },
    **{
        f"group_norm bf16 {layout}, {name}": functools.partial(
            _group_norm, torch.bfloat16, (32, 256, 16, 16), groups, layout == "channels last", act
        )
        for layout in ("channels last", "NCHW")
        for name, groups, act in (("instances", 256, None), ("gelu", 32, "gelu"), ("one", 1, None))
    },
    **{f"dropout {name}": functools.partial(_dropout, dtype) for name, dtype in _DTYPES.items()},
    **{
        f"clip_grad_norm_ {norm}": functools.partial(
            _clip_grad, lightning_kernels.clip_grad_norm_, norm
        )
        for norm in (1.0, 2.0, 3.0, math.inf)
    },
    **{
        f"clip_grad_scale {norm}": functools.partial(
            _clip_grad, lightning_kernels.clip_grad_scale, norm
        )
        for norm in (2.0, 3.0, math.inf)
    },
    "clip_grad_scale, scaled": _clip_grad_scale,
    "clip_grads_with_norm_": _clip_grads_with_norm,
    "clip_grad_value_": functools.partial(_clip_grad, lightning_kernels.clip_grad_value_),
    "clip_grad_adaptive_": functools.partial(_clip_grad, lightning_kernels.clip_grad_adaptive_),
    **{
        f"{function.__name__[1:]} {name} {layout}": functools.partial(
            function, dtype, layout == "channels last"
        )
        for function in (_channel_dropout, _stochastic_depth)
        for name, dtype in _DTYPES.items()
        for layout in ("channels last", "NCHW")
    },
    "channel_dropout bf16, alpha": functools.partial(_channel_dropout, torch.bfloat16, True, True),
    "channel_dropout bf16, scheduled alpha": functools.partial(
        _channel_dropout, torch.bfloat16, False, True, True
    ),
    "stochastic_depth bf16, plain": functools.partial(
        _stochastic_depth, torch.bfloat16, False, False, False
    ),
    "stochastic_depth bf16, residual": functools.partial(
        _stochastic_depth, torch.bfloat16, True, True, False
    ),
    **{
        f"dropout_activation {name} gelu": functools.partial(_dropout_activation, dtype, "gelu")
        for name, dtype in _DTYPES.items()
    },
    **{
        f"dropout_activation bf16 {name}": functools.partial(
            _dropout_activation, torch.bfloat16, name
        )
        for name in ("relu", "elu", "silu")
    },
    "dropout_activation bf16 gelu, no bias": functools.partial(
        _dropout_activation, torch.bfloat16, "gelu", bias=False
    ),
    "dropout_activation bf16 silu, evaluation": functools.partial(
        _dropout_activation, torch.bfloat16, "silu", training=False
    ),
    **{
        f"drop_block bf16 {layout} {shape[1:]}": functools.partial(
            _drop_block, torch.bfloat16, shape, layout == "channels last"
        )
        for layout in ("channels last", "NCHW")
        for shape in (*_MAPS, (32, 64, 128, 128))
    },
    **{
        f"drop_block {name} {layout}": functools.partial(
            _drop_block, dtype, _MAPS[0], layout == "channels last"
        )
        for name, dtype in (("fp16", torch.float16), ("fp32", torch.float32))
        for layout in ("channels last", "NCHW")
    },
    **{
        f"drop_block bf16 NCHW {shape[1:]}": functools.partial(
            _drop_block, torch.bfloat16, shape, False
        )
        for shape in ((32, 64, 33, 67), (32, 64, 16, 16, 16))
    },
    **{
        f"drop_block bf16 {layout}, scheduled and shared": functools.partial(
            _drop_block, torch.bfloat16, _MAPS[0], layout == "channels last", False, True
        )
        for layout in ("channels last", "NCHW")
    },
    "dropout bf16, scheduled": functools.partial(_dropout, torch.bfloat16, scheduled=True),
    "alpha_dropout bf16": functools.partial(_dropout, torch.bfloat16, alpha=True),
    "alpha_dropout bf16, scheduled": functools.partial(_dropout, torch.bfloat16, True, True),
}


def launches_of(name: str) -> list[Launch]:
    """Return the kernel launches of the call named ``name`` in :data:`CALLS`."""
    with record_launches() as launches:
        CALLS[name]()
    return launches
