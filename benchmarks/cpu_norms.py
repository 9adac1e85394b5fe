"""The norms of the ``cpu`` benchmark, and the layers around them."""

import functools
from typing import Any

import torch
import torchvision
from torch import Tensor

import lightning_kernels
from benchmarks.cpu_op import DROP_RATE, MAPS, Candidates, Op, Shape, on_x, random
from lightning_practices import nn

_GROUPS = 4


def _layer_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (random(part, dtype) for part in (shape, shape[-1:], shape[-1:]))
    arguments = (x, shape[-1:], weight, bias)
    return Candidates(
        lambda: lightning_kernels.layer_norm(*arguments),
        lambda: torch.nn.functional.layer_norm(*arguments),
        (x, weight, bias),
    )


def _rms_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight = random(shape, dtype), random(shape[-1:], dtype)
    arguments = (x, shape[-1:], weight)
    return Candidates(
        lambda: lightning_kernels.rms_norm(*arguments),
        lambda: torch.nn.functional.rms_norm(*arguments),
        (x, weight),
    )


def _add_norm(
    shape: Shape, dtype: torch.dtype, *, norm: str = "layer_norm", layer: bool = False
) -> Candidates:
    """Compare with dropout, addition and norm, one after the other, of which the norm is used."""
    x, residual = (random(shape, dtype) for _ in range(2))
    functional, rows = torch.nn.functional, shape[-1:]
    count = 2 if norm == "layer_norm" else 1
    parameters = [torch.ones(rows, dtype=dtype, requires_grad=True) for _ in range(count)]

    def peer() -> Tensor:
        z = residual + functional.dropout(x, DROP_RATE)
        y: Tensor = getattr(functional, norm)(z, rows, *parameters, eps=1e-5)
        return y

    def ours() -> Tensor:
        results: tuple[Tensor, Tensor]
        if layer:
            results = module(x, residual)
        else:
            function = getattr(lightning_kernels, f"add_dropout_{norm}")
            results = function(x, residual, rows, *parameters, p=DROP_RATE, eps=1e-5)
        return results[0]

    module = nn.AddDropoutLayerNorm(shape[-1], DROP_RATE, dtype=dtype)
    return Candidates(
        ours, peer, (x, residual, *(module.parameters() if layer else ()), *parameters)
    )


def _batch_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    running = torch.zeros(shape[1:2], dtype=dtype), torch.ones(shape[1:2], dtype=dtype)
    arguments = (x, *running, weight, bias, True)
    return Candidates(
        lambda: lightning_kernels.batch_norm(*arguments),
        lambda: torch.nn.functional.batch_norm(*arguments),
        (x, weight, bias),
    )


def _of_channels(
    shape: Shape, dtype: torch.dtype, *, name: str, before: tuple[Any, ...]
) -> Candidates:
    """Compare functions of the input, ``before``, and the weight and bias of its channels."""
    x, weight, bias = (random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    ours, peer = (getattr(room, name) for room in (lightning_kernels, torch.nn.functional))
    return Candidates(
        lambda: ours(x, *before, weight, bias),
        lambda: peer(x, *before, weight, bias),
        (x, weight, bias),
    )


def _layer(
    shape: Shape, dtype: torch.dtype, *, name: str, room: Any = torch.nn, dim: int = 1,
    before: tuple[Any, ...] = (), **options: Any,
) -> Candidates:  # fmt: skip
    """Compare layers of one name, whose argument after ``before`` is the size of a dimension."""
    ours, peer = (
        getattr(where, name)(*before, shape[dim], dtype=dtype, **options) for where in (nn, room)
    )
    return on_x(shape, dtype, ours=ours, peer=peer)


def _transformer(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    """Compare a layer of a transformer with its twin in training."""
    room: Any = torchvision.models.vision_transformer if name == "EncoderBlock" else torch.nn
    width, heads = shape[-1], 4
    arguments: tuple[Any, ...] = (width, heads, 2 * width, DROP_RATE)
    if name == "EncoderBlock":
        arguments = (heads, width, 2 * width, DROP_RATE, DROP_RATE)
    ours, peer = (getattr(where, name)(*arguments).to(dtype) for where in (nn, room))
    x = random(shape, dtype)
    more = (random(shape, dtype),) if name == "TransformerDecoderLayer" else ()
    inputs = (x, *more, *ours.parameters(), *peer.parameters())
    return Candidates(lambda: ours(x, *more), lambda: peer(x, *more), inputs)


_BATCH_NORMS: dict[str, tuple[Shape, ...]] = {
    "BatchNorm1d": ((16, 8), (256, 1024)),
    "BatchNorm2d": ((2, 8, 4, 4), (8, 64, 56, 56)),
    "BatchNorm3d": ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28)),
    "SyncBatchNorm": ((2, 8, 4, 4), (8, 64, 56, 56)),  # in one process
}
_INSTANCE_NORMS: dict[str, tuple[Shape, ...]] = {
    "InstanceNorm1d": ((2, 8, 16), (8, 768, 197)),
    "InstanceNorm2d": ((2, 8, 4, 4), (8, 64, 56, 56)),
    "InstanceNorm3d": ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28)),
}

NORMS: dict[str, Op] = {
    "add_dropout_layer_norm": Op("torch.nn.functional.layer_norm", _add_norm),
    "add_dropout_rms_norm": Op(
        "torch.nn.functional.rms_norm", functools.partial(_add_norm, norm="rms_norm")
    ),
    "nn.AddDropoutLayerNorm": Op(
        "torch.nn.functional.layer_norm", functools.partial(_add_norm, layer=True)
    ),
    "group_norm": Op(
        "torch.nn.functional.group_norm",
        functools.partial(_of_channels, name="group_norm", before=(_GROUPS,)),
        MAPS,
    ),
    "nn.GroupNorm": Op(
        "torch.nn.GroupNorm", functools.partial(_layer, name="GroupNorm", before=(_GROUPS,)), MAPS
    ),
    "instance_norm": Op(
        "torch.nn.functional.instance_norm",
        functools.partial(_of_channels, name="instance_norm", before=(None, None)),
        MAPS,
    ),
    **{
        f"nn.{name}": Op(
            f"torch.nn.{name}", functools.partial(_layer, name=name, affine=True), shapes
        )
        for name, shapes in _INSTANCE_NORMS.items()
    },
    "batch_norm": Op(
        "torch.nn.functional.batch_norm", _batch_norm, ((2, 8, 4, 4), (8, 64, 56, 56))
    ),
    **{
        f"nn.{name}": Op(f"torch.nn.{name}", functools.partial(_layer, name=name), shapes)
        for name, shapes in _BATCH_NORMS.items()
    },
    "layer_norm": Op("torch.nn.functional.layer_norm", _layer_norm),
    "nn.LayerNorm": Op("torch.nn.LayerNorm", functools.partial(_layer, name="LayerNorm", dim=-1)),
    "nn.LayerNorm2d": Op(
        "torchvision's LayerNorm2d",
        functools.partial(_layer, name="LayerNorm2d", room=torchvision.models.convnext),
        ((2, 8, 4, 4), (8, 96, 56, 56)),
    ),
    "rms_norm": Op("torch.nn.functional.rms_norm", _rms_norm),
    "nn.RMSNorm": Op("torch.nn.RMSNorm", functools.partial(_layer, name="RMSNorm", dim=-1)),
    **{
        f"nn.{name}": Op(
            f"{room}.{name}",
            functools.partial(_transformer, name=name),
            ((2, 4, 32), (8, 197, 256)),
        )
        for name, room in (
            ("TransformerEncoderLayer", "torch.nn"),
            ("TransformerDecoderLayer", "torch.nn"),
            ("EncoderBlock", "torchvision.models.vision_transformer"),
        )
    },
}
