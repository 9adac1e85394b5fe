"""The calls whose machine code is tested and reported, one call per class of shapes."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lightning_kernels
from benchmarks.machine_code import Launch, record_launches

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NCHW, NHWC = "NCHW", "NHWC"
_DTYPE_NAMES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}


class Call(NamedTuple):
    """A public function that is called forward and backward on fake tensors.

    Attributes:
        run: Function that makes the call.
        bits: Least width in bits of the widest access to the tensors.
    """

    run: Callable[[], None]
    bits: int


@functools.cache
def launches_of(name: str) -> tuple[Launch, ...]:
    """Return the kernel launches of the call named ``name`` in :data:`CALLS`."""
    with record_launches() as launches:
        CALLS[name].run()
    return tuple(launches)


def _layer_norm(dtype: torch.dtype, shape: tuple[int, ...], affine: bool = True) -> None:
    x = _tensor(dtype, shape)
    weight, bias = (_parameter(shape[-1]) if affine else None for _ in range(2))
    y = lightning_kernels.layer_norm(x, shape[-1:], weight, bias)
    _backward(y, torch.empty_like(y), None)


def _layer_norm2d(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    """Normalise the channels of images in either layout, without a copy."""
    x = _tensor(dtype, shape, layout).movedim(1, -1)
    y = lightning_kernels.layer_norm(x, shape[1:2], *_parameters(shape[1]))
    _backward(y, torch.empty_like(y), None)


def _rms_norm(dtype: torch.dtype, shape: tuple[int, ...], heads: bool = False) -> None:
    """Normalise rows, or with ``heads`` the queries within a tensor of queries, keys and values."""
    x = _tensor(dtype, (shape[0], 3, *shape[1:]))[:, 1] if heads else _tensor(dtype, shape)
    y = lightning_kernels.rms_norm(x, shape[-1:], _parameter(shape[-1]))
    _backward(y, torch.empty_like(y), None)


def _add_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    norm: str = "layer_norm",
    residual: torch.dtype | None = None,
    layer_scale: bool = False,
    used: str = "yz",
    training: bool = True,
) -> None:
    x, other = _tensor(dtype, shape), _tensor(residual or dtype, shape)
    weight, bias = _parameters(shape[-1])
    y, z = getattr(lightning_kernels, f"add_dropout_{norm}")(
        x, other, shape[-1:], weight, *([bias] if norm == "layer_norm" else []), p=0.1,
        drop_path=0.1, layer_scale=_parameter(shape[-1]) if layer_scale else None,
        training=training,
    )  # fmt: skip
    grads = (torch.empty_like(t) if name in used else None for name, t in (("y", y), ("z", z)))
    _backward(y, *grads, None)


def _batch_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    residual: bool = False,
    activation: str | None = "relu",
    training: bool = True,
) -> None:
    x, other = (_tensor(dtype, shape, layout) for _ in range(2))
    mean, var = (torch.empty(shape[1], device="cuda") for _ in range(2))
    y = lightning_kernels.batch_norm(
        x, mean, var, *_parameters(shape[1]), training,
        activation=activation, residual=other if residual else None,
    )  # fmt: skip
    _backward(y, torch.empty_like(y), None, None)


def _batch_norm1d(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    _batch_norm(dtype, shape, NCHW, activation=None)


def _group_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    groups: int = 32,
    activation: str | None = "silu",
) -> None:
    x = _tensor(dtype, shape, layout)
    parameters = _parameters(shape[1])
    y = lightning_kernels.group_norm(x, groups, *parameters, activation=activation)
    _backward(y, torch.empty_like(y), None)


def _instance_norm(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    _group_norm(dtype, shape, layout, shape[1], None)


def _dropout(dtype: torch.dtype, shape: tuple[int, ...], scheduled: bool = False) -> None:
    x = _tensor(dtype, shape)
    y = lightning_kernels.dropout(x, _rate(scheduled), training=True)
    _backward(y, torch.empty_like(y))


def _alpha_dropout(dtype: torch.dtype, shape: tuple[int, ...], scheduled: bool = False) -> None:
    x = _tensor(dtype, shape)
    y = lightning_kernels.alpha_dropout(x, _rate(scheduled), training=True)
    _backward(y, torch.empty_like(y))


def _dropout2d(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    x = _tensor(dtype, shape, layout)
    y = lightning_kernels.dropout2d(x, 0.1, training=True)
    _backward(y, torch.empty_like(y))


def _feature_alpha_dropout(
    dtype: torch.dtype, shape: tuple[int, ...], layout: str, scheduled: bool = False
) -> None:
    x = _tensor(dtype, shape, layout)
    y = lightning_kernels.feature_alpha_dropout(x, _rate(scheduled), training=True)
    _backward(y, torch.empty_like(y))


def _stochastic_depth(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str = NCHW,
    residual: bool = True,
    layer_scale: bool = True,
) -> None:
    x, other = (_tensor(dtype, shape, layout) for _ in range(2))
    channels = (shape[1], 1, 1) if len(shape) == 4 else shape[-1:]
    y = lightning_kernels.stochastic_depth(
        x, 0.1, "row", residual=other if residual else None,
        layer_scale=_parameter(*channels) if layer_scale else None,
    )  # fmt: skip
    _backward(y, torch.empty_like(y))


def _dropout_activation(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    activation: str = "gelu",
    bias: bool = True,
    training: bool = True,
) -> None:
    x = _tensor(dtype, shape)
    shift = _tensor(dtype, shape[-1:]) if bias else None
    y = lightning_kernels.dropout_activation(x, activation, 0.1, training, bias=shift)
    _backward(y, torch.empty_like(y))


def _drop_block(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    per_channel: bool = True,
    scheduled: bool = False,
) -> None:
    x, planar = _tensor(dtype, shape, layout), len(shape) == 4
    function = lightning_kernels.drop_block2d if planar else lightning_kernels.drop_block3d
    y = function(x, _rate(scheduled), 7 if planar else 3, per_channel=per_channel)
    _backward(y, torch.empty_like(y), None, None)


def _clip_grad_norm_(norm_type: float) -> None:
    lightning_kernels.clip_grad_norm_(_weights(), 0.1, norm_type)


def _clip_grad_scale(norm_type: float) -> None:
    lightning_kernels.clip_grad_scale(_weights(), 0.1, norm_type)


def _clip_grad_scale_of_losses() -> None:
    limit, scale = torch.empty(2, device="cuda").unbind()
    lightning_kernels.clip_grad_scale(_weights(), limit, loss_scale=scale)


def _clip_grads_with_norm_() -> None:
    limit, norm = torch.empty(2, device="cuda").unbind()
    lightning_kernels.clip_grads_with_norm_(_weights(), limit, norm)


def _clip_grad_value_() -> None:
    lightning_kernels.clip_grad_value_(_weights(), 0.1)


def _clip_grad_adaptive_() -> None:
    lightning_kernels.clip_grad_adaptive_(_weights(), 0.1)


def _tensor(dtype: torch.dtype, shape: tuple[int, ...], layout: str = NCHW) -> Tensor:
    x = torch.empty(shape, device="cuda", dtype=dtype, requires_grad=True)
    if layout == NCHW:
        return x
    planar = len(shape) == 4
    return x.to(memory_format=torch.channels_last if planar else torch.channels_last_3d)


def _parameter(*shape: int) -> Tensor:
    return torch.empty(shape, device="cuda", requires_grad=True)


def _parameters(size: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a norm."""
    return _parameter(size), _parameter(size)


def _rate(scheduled: bool) -> Tensor | float:
    return torch.empty((), device="cuda") if scheduled else 0.1


def _weights() -> list[Tensor]:
    """Return a parameter with a gradient per dtype: one launch handles a table of all dtypes."""
    weights = [torch.empty(64, 64, device="cuda", dtype=dtype) for dtype in _DTYPE_NAMES]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    return weights


@torch.no_grad()
def _backward(y: Tensor, *grads: Tensor | None) -> None:
    """Run only the backward of ``y``'s own node, since autograd's engine needs a real device."""
    assert y.grad_fn is not None
    y.grad_fn.apply(*grads)  # type: ignore[attr-defined]


def _call(
    function: Callable[..., None], *args: Any, bits: int = 128, **options: Any
) -> tuple[str, Call]:
    """Return the name of ``function(*args, **options)``, and the call itself."""
    values = (f"{key} {_text(value)}" for key, value in options.items())
    name = " ".join((function.__name__[1:], *map(_text, args)))
    return ", ".join((name, *values)), Call(lambda: function(*args, **options), bits)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return _DTYPE_NAMES.get(value, str(value)) if isinstance(value, torch.dtype) else str(value)


# The compiler distinguishes classes of shapes. All shapes of a class share their machine code, so
# each class is compiled once. The 16-bit dtypes differ only in a conversion; fp16 and fp32 are
# listed for shapes where the dtype could matter.
CALLS: dict[str, Call] = dict(
    [
        # Rows: ViT, GPT-2, Llama, ConvNeXt, attention's queries and keys, and tiny shapes.
        _call(_layer_norm, BF16, (256, 197, 768)),
        _call(_layer_norm, BF16, (128, 197, 1024)),
        _call(_layer_norm, BF16, (8, 1024, 768)),
        _call(_layer_norm, BF16, (8, 1024, 1024)),
        # Rows of 5 or 7 pieces: a thread has 4 elements of a piece.
        _call(_layer_norm, BF16, (8, 1024, 1280), bits=64),
        _call(_layer_norm, BF16, (8, 1024, 1600), bits=64),
        _call(_layer_norm, BF16, (8192, 2048)),
        _call(_layer_norm, BF16, (8192, 4096)),
        _call(_layer_norm, BF16, (8192, 5120)),
        _call(_layer_norm, BF16, (8192, 8192)),
        _call(_layer_norm, BF16, (262144, 128)),
        _call(_layer_norm, BF16, (1, 128), bits=16),  # one thread per element
        _call(_layer_norm, BF16, (256, 1024)),
        _call(_layer_norm, BF16, (256, 197, 768), affine=False),
        _call(_layer_norm, FP16, (256, 197, 768)),
        _call(_layer_norm, FP32, (256, 197, 768)),
        _call(_layer_norm, FP32, (8, 1024, 1600)),
        _call(_layer_norm, FP32, (8192, 8192)),
        _call(_layer_norm2d, BF16, (128, 96, 56, 56), NHWC),
        _call(_layer_norm2d, BF16, (128, 128, 56, 56), NHWC),
        _call(_layer_norm2d, BF16, (128, 192, 28, 28), NHWC),
        _call(_layer_norm2d, BF16, (128, 256, 28, 28), NHWC),
        _call(_layer_norm2d, BF16, (128, 384, 14, 14), NHWC),
        _call(_layer_norm2d, BF16, (128, 512, 14, 14), NHWC),
        _call(_layer_norm2d, BF16, (128, 768, 7, 7), NHWC),
        _call(_layer_norm2d, BF16, (128, 1024, 7, 7), NHWC),
        _call(_layer_norm2d, BF16, (128, 96, 56, 56), NCHW),
        _call(_layer_norm2d, BF16, (128, 128, 56, 56), NCHW),
        _call(_layer_norm2d, BF16, (128, 192, 28, 28), NCHW),
        _call(_layer_norm2d, BF16, (128, 256, 28, 28), NCHW),
        _call(_layer_norm2d, BF16, (128, 384, 14, 14), NCHW),
        _call(_layer_norm2d, FP32, (128, 96, 56, 56), NCHW),
        _call(_rms_norm, BF16, (8192, 2048)),
        _call(_rms_norm, BF16, (8192, 4096)),
        _call(_rms_norm, BF16, (8192, 5120)),
        _call(_rms_norm, BF16, (8192, 8192)),
        _call(_rms_norm, BF16, (4096, 16384)),
        _call(_rms_norm, BF16, (262144, 128)),
        _call(_rms_norm, BF16, (8192, 32, 128), heads=True),
        _call(_rms_norm, FP32, (8192, 8192)),
        _call(_add_norm, BF16, (256, 197, 768)),
        _call(_add_norm, BF16, (8, 1024, 1024)),
        _call(_add_norm, BF16, (8, 1024, 1280), bits=64),
        _call(_add_norm, BF16, (8, 1024, 1600), bits=64),
        _call(_add_norm, BF16, (8, 1024, 4096)),
        _call(_add_norm, BF16, (8, 1024, 8192)),
        _call(_add_norm, BF16, (256, 1024)),
        _call(_add_norm, BF16, (256, 197, 768), layer_scale=True, bits=64),
        _call(_add_norm, BF16, (8, 1024, 4096), layer_scale=True),
        _call(_add_norm, BF16, (256, 197, 768), residual=FP32),
        _call(_add_norm, BF16, (8, 1024, 4096), residual=FP32),
        _call(_add_norm, BF16, (256, 197, 768), used="y"),
        _call(_add_norm, BF16, (256, 197, 768), used="z"),
        _call(_add_norm, BF16, (256, 197, 768), training=False),
        _call(_add_norm, BF16, (8192, 4096), norm="rms_norm"),
        _call(_add_norm, FP16, (256, 197, 768)),
        _call(_add_norm, FP32, (8, 1024, 1600)),
        _call(_add_norm, FP32, (8, 1024, 8192)),
        # ResNet-50, channels last: every stage, without and with a residual.
        _call(_batch_norm, BF16, (256, 64, 112, 112), NHWC),
        _call(_batch_norm, BF16, (256, 64, 56, 56), NHWC),
        _call(_batch_norm, BF16, (256, 128, 28, 28), NHWC),
        _call(_batch_norm, BF16, (256, 256, 14, 14), NHWC),
        _call(_batch_norm, BF16, (256, 512, 7, 7), NHWC),
        _call(_batch_norm, BF16, (256, 256, 56, 56), NHWC, residual=True),
        _call(_batch_norm, BF16, (256, 512, 28, 28), NHWC, residual=True),
        _call(_batch_norm, BF16, (256, 1024, 14, 14), NHWC, residual=True),
        _call(_batch_norm, BF16, (256, 2048, 7, 7), NHWC, residual=True),
        _call(_batch_norm, BF16, (256, 1024, 14, 14), NHWC, activation=None),
        _call(_batch_norm, BF16, (32, 64, 56, 56), NHWC),
        _call(_batch_norm, BF16, (32, 2048, 7, 7), NHWC),
        _call(_batch_norm, BF16, (64, 1024, 7, 7), NHWC),
        _call(_batch_norm1d, BF16, (100000, 32)),
        _call(_batch_norm, BF16, (256, 256, 14, 14), NHWC, residual=True, activation="gelu"),
        _call(_batch_norm, BF16, (256, 256, 14, 14), NHWC, activation="silu", training=False),
        _call(_batch_norm, FP16, (256, 64, 56, 56), NHWC),
        _call(_batch_norm, FP32, (256, 64, 56, 56), NHWC),
        # Contiguous: planes of 112x112, 56x56 and 28x28 begin at multiples of 16 elements, planes
        # of 14x14 at multiples of 4 elements (64 bits), planes of 7x7 at any element.
        _call(_batch_norm, BF16, (256, 64, 112, 112), NCHW),
        _call(_batch_norm, BF16, (256, 64, 56, 56), NCHW),
        _call(_batch_norm, BF16, (256, 128, 28, 28), NCHW),
        _call(_batch_norm, BF16, (256, 256, 14, 14), NCHW, bits=64),
        _call(_batch_norm, BF16, (256, 512, 7, 7), NCHW, bits=16),
        _call(_batch_norm, BF16, (256, 256, 56, 56), NCHW, residual=True),
        _call(_batch_norm, BF16, (256, 512, 28, 28), NCHW, residual=True),
        _call(_batch_norm, BF16, (256, 1024, 14, 14), NCHW, residual=True, bits=64),
        _call(_batch_norm, BF16, (256, 2048, 7, 7), NCHW, residual=True, bits=16),
        _call(_batch_norm, BF16, (256, 256, 56, 56), NCHW, activation=None),
        _call(_batch_norm, BF16, (32, 64, 56, 56), NCHW),
        _call(_batch_norm, BF16, (32, 128, 28, 28), NCHW),
        _call(_batch_norm, BF16, (32, 256, 14, 14), NCHW, bits=64),
        _call(_batch_norm, BF16, (32, 512, 7, 7), NCHW, bits=16),
        _call(_batch_norm, BF16, (64, 1024, 7, 7), NCHW, bits=16),
        _call(_batch_norm, BF16, (256, 64, 56, 56), NCHW, residual=True, activation="gelu"),
        _call(_batch_norm, BF16, (256, 64, 56, 56), NCHW, activation="hardswish", training=False),
        _call(_batch_norm, FP32, (256, 64, 56, 56), NCHW),
        # A program may hold a whole group in both passes, only in the forward pass, or in neither.
        _call(_group_norm, BF16, (8, 320, 64, 64), NHWC),
        _call(_group_norm, BF16, (8, 640, 32, 32), NHWC),
        _call(_group_norm, BF16, (8, 1280, 16, 16), NHWC),
        _call(_group_norm, BF16, (8, 1280, 8, 8), NHWC),
        _call(_group_norm, BF16, (2, 960, 96, 96), NHWC),
        _call(_group_norm, BF16, (256, 256, 56, 56), NHWC),
        _call(_group_norm, BF16, (256, 1024, 14, 14), NHWC),
        _call(_group_norm, BF16, (8, 320, 64, 64), NCHW),
        _call(_group_norm, BF16, (8, 640, 32, 32), NCHW),
        _call(_group_norm, BF16, (8, 1280, 16, 16), NCHW),
        _call(_group_norm, BF16, (8, 1280, 8, 8), NCHW),
        _call(_group_norm, BF16, (2, 960, 96, 96), NCHW),
        _call(_group_norm, BF16, (256, 256, 56, 56), NCHW),
        _call(_group_norm, BF16, (256, 1024, 14, 14), NCHW, bits=64),
        _call(_group_norm, BF16, (32, 256, 16, 16), NCHW, activation="gelu"),
        _call(_group_norm, BF16, (32, 256, 16, 16), NCHW, groups=1, activation=None),
        _call(_group_norm, FP32, (8, 320, 64, 64), NHWC),
        _call(_group_norm, FP32, (8, 1280, 16, 16), NCHW),
        _call(_instance_norm, BF16, (16, 128, 64, 64), NHWC),
        _call(_instance_norm, BF16, (16, 128, 64, 64), NCHW),
        _call(_instance_norm, BF16, (2, 32, 128, 128, 128), NHWC),
        _call(_instance_norm, BF16, (2, 32, 128, 128, 128), NCHW),
        # Dropout of elements, of channels and of branches.
        _call(_dropout, BF16, (256, 197, 768)),
        _call(_dropout, BF16, (256, 2048, 7, 7)),
        _call(_dropout, BF16, (1, 128)),
        _call(_dropout, BF16, (256, 197, 768), scheduled=True),
        _call(_dropout, FP16, (256, 197, 768)),
        _call(_dropout, FP32, (256, 197, 768)),
        _call(_alpha_dropout, BF16, (8192, 1024)),
        _call(_alpha_dropout, BF16, (8192, 1024), scheduled=True),
        _call(_dropout2d, BF16, (256, 64, 56, 56), NHWC),
        _call(_dropout2d, BF16, (256, 2048, 7, 7), NHWC),
        _call(_dropout2d, BF16, (256, 64, 56, 56), NCHW),
        _call(_dropout2d, BF16, (256, 1024, 14, 14), NCHW, bits=64),
        _call(_dropout2d, BF16, (256, 2048, 7, 7), NCHW, bits=16),
        _call(_feature_alpha_dropout, BF16, (256, 64, 56, 56), NHWC),
        _call(_feature_alpha_dropout, BF16, (256, 64, 56, 56), NCHW, scheduled=True),
        _call(_stochastic_depth, BF16, (256, 197, 768)),
        _call(_stochastic_depth, BF16, (128, 96, 56, 56), NHWC),
        _call(_stochastic_depth, BF16, (128, 768, 7, 7), NHWC),
        _call(_stochastic_depth, BF16, (128, 96, 56, 56), NCHW),
        _call(_stochastic_depth, BF16, (128, 384, 14, 14), NCHW, bits=64),
        _call(_stochastic_depth, BF16, (128, 768, 7, 7), NCHW, bits=16),
        _call(_stochastic_depth, BF16, (128, 96, 56, 56), NHWC, layer_scale=False),
        _call(_stochastic_depth, BF16, (128, 96, 56, 56), NCHW, residual=False, layer_scale=False),
        _call(_dropout_activation, BF16, (256, 197, 3072)),
        _call(_dropout_activation, BF16, (8, 1024, 6400)),
        _call(_dropout_activation, BF16, (256, 1024)),
        _call(_dropout_activation, BF16, (256, 197, 3072), activation="elu"),
        _call(_dropout_activation, BF16, (256, 197, 3072), activation="silu"),
        _call(_dropout_activation, BF16, (256, 197, 3072), activation="silu", training=False),
        _call(_dropout_activation, BF16, (256, 197, 3072), bias=False),
        _call(_dropout_activation, FP16, (256, 197, 3072)),
        _call(_dropout_activation, FP32, (256, 197, 3072)),
        _call(_drop_block, BF16, (256, 512, 28, 28), NHWC),
        _call(_drop_block, BF16, (256, 1024, 14, 14), NHWC),
        _call(_drop_block, BF16, (256, 2048, 7, 7), NHWC),
        _call(_drop_block, BF16, (256, 512, 28, 28), NCHW),
        _call(_drop_block, BF16, (256, 1024, 14, 14), NCHW),
        _call(_drop_block, BF16, (256, 2048, 7, 7), NCHW),
        _call(_drop_block, BF16, (32, 64, 128, 128), NCHW),
        _call(_drop_block, BF16, (32, 64, 33, 67), NCHW),
        _call(_drop_block, BF16, (32, 64, 16, 16, 16), NCHW),
        _call(_drop_block, BF16, (256, 512, 28, 28), NHWC, per_channel=False, scheduled=True),
        _call(_drop_block, FP32, (256, 512, 28, 28), NCHW),
        # One table holds gradients of any number, size and dtype.
        _call(_clip_grad_norm_, 1.0),
        _call(_clip_grad_norm_, 2.0),
        _call(_clip_grad_norm_, 3.0),
        _call(_clip_grad_norm_, math.inf),
        _call(_clip_grad_scale, 2.0),
        _call(_clip_grad_scale, 3.0),
        _call(_clip_grad_scale, math.inf),
        _call(_clip_grad_scale_of_losses),
        _call(_clip_grads_with_norm_),
        _call(_clip_grad_value_),
        _call(_clip_grad_adaptive_),
    ]
)
