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


def _rms_norm_layer(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (kind(shape[-1], dtype=dtype) for kind in (nn.RMSNorm, torch.nn.RMSNorm))
    return on_x(shape, dtype, ours=ours, peer=peer)


def _layer_norm_layer(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (kind(shape[-1], dtype=dtype) for kind in (nn.LayerNorm, torch.nn.LayerNorm))
    return on_x(shape, dtype, ours=ours, peer=peer)


def _layer_norm2d(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (
        kind(shape[1], dtype=dtype)
        for kind in (nn.LayerNorm2d, torchvision.models.convnext.LayerNorm2d)
    )
    return on_x(shape, dtype, ours=ours, peer=peer)


def _batch_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    running = torch.zeros(shape[1:2], dtype=dtype), torch.ones(shape[1:2], dtype=dtype)
    arguments = (x, *running, weight, bias, True)
    return Candidates(
        lambda: lightning_kernels.batch_norm(*arguments),
        lambda: torch.nn.functional.batch_norm(*arguments),
        (x, weight, bias),
    )


def _batch_norm_layer(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    ours, peer = (getattr(kind, name)(shape[1], dtype=dtype) for kind in (nn, torch.nn))
    return on_x(shape, dtype, ours=ours, peer=peer)


def _group_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    arguments = (x, _GROUPS, weight, bias)
    return Candidates(
        lambda: lightning_kernels.group_norm(*arguments),
        lambda: torch.nn.functional.group_norm(*arguments),
        (x, weight, bias),
    )


def _group_norm_layer(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (kind.GroupNorm(_GROUPS, shape[1], dtype=dtype) for kind in (nn, torch.nn))
    return on_x(shape, dtype, ours=ours, peer=peer)


def _instance_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    arguments = (x, None, None, weight, bias)
    return Candidates(
        lambda: lightning_kernels.instance_norm(*arguments),
        lambda: torch.nn.functional.instance_norm(*arguments),
        (x, weight, bias),
    )


def _instance_norm_layer(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    ours, peer = (
        getattr(kind, name)(shape[1], affine=True, dtype=dtype) for kind in (nn, torch.nn)
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
    "group_norm": Op("torch.nn.functional.group_norm", _group_norm, MAPS),
    "nn.GroupNorm": Op("torch.nn.GroupNorm", _group_norm_layer, MAPS),
    "instance_norm": Op("torch.nn.functional.instance_norm", _instance_norm, MAPS),
    **{
        f"nn.{name}": Op(
            f"torch.nn.{name}", functools.partial(_instance_norm_layer, name=name), shapes
        )
        for name, shapes in _INSTANCE_NORMS.items()
    },
    "batch_norm": Op(
        "torch.nn.functional.batch_norm", _batch_norm, ((2, 8, 4, 4), (8, 64, 56, 56))
    ),
    **{
        f"nn.{name}": Op(
            f"torch.nn.{name}", functools.partial(_batch_norm_layer, name=name), shapes
        )
        for name, shapes in _BATCH_NORMS.items()
    },
    "layer_norm": Op("torch.nn.functional.layer_norm", _layer_norm),
    "nn.LayerNorm": Op("torch.nn.LayerNorm", _layer_norm_layer),
    "nn.LayerNorm2d": Op(
        "torchvision's LayerNorm2d", _layer_norm2d, ((2, 8, 4, 4), (8, 96, 56, 56))
    ),
    "rms_norm": Op("torch.nn.functional.rms_norm", _rms_norm),
    "nn.RMSNorm": Op("torch.nn.RMSNorm", _rms_norm_layer),
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
