"""The layers that drop, and gradient clipping, of the ``cpu`` benchmark."""

import functools
from importlib import import_module
from typing import Any

import torch
import torchvision
from torch import Tensor

import lightning_kernels
from benchmarks.cpu_op import DROP_RATE, MAPS, SHAPES, Candidates, Op, Shape, on_x, random
from lightning_practices import nn


def _dropout_of_channels(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    ours, peer = (
        functools.partial(getattr(room, name), p=DROP_RATE, training=True)
        for room in (lightning_kernels, torch.nn.functional)
    )
    return on_x(shape, dtype, ours=ours, peer=peer)


def _stochastic_depth(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, residual = (random(shape, dtype) for _ in range(2))
    return Candidates(
        lambda: lightning_kernels.stochastic_depth(x, DROP_RATE, "row", residual=residual),
        lambda: residual + torchvision.ops.stochastic_depth(x, DROP_RATE, "row"),
        (x, residual),
    )


def _dropout_activation(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, bias = (random(part, dtype) for part in (shape, shape[-1:]))
    functional = torch.nn.functional
    return Candidates(
        lambda: lightning_kernels.dropout_activation(x, "gelu", DROP_RATE, bias=bias),
        lambda: functional.dropout(functional.gelu(x + bias), DROP_RATE),
        (x, bias),
    )


def _layer_that_drops(
    shape: Shape, dtype: torch.dtype, *, name: str, room: Any, arguments: tuple[Any, ...]
) -> Candidates:
    ours, peer = (getattr(where, name)(DROP_RATE, *arguments) for where in (nn, room))
    return on_x(shape, dtype, ours=ours, peer=peer)


def _drop_connect(shape: Shape, dtype: torch.dtype) -> Candidates:
    layer = nn.DropConnectLinear(shape[-1], shape[-1], p=DROP_RATE, dtype=dtype)
    x, functional = random(shape, dtype), torch.nn.functional
    return Candidates(
        lambda: layer(x),
        lambda: functional.linear(x, functional.dropout(layer.weight, DROP_RATE), layer.bias),
        (x, *layer.parameters()),
    )


def _weights(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """Return as many parameters as the shape has rows, with small gradients."""
    weights = [torch.ones(shape[1:], dtype=dtype) for _ in range(shape[0])]
    for weight in weights:
        weight.grad = torch.randn_like(weight) * 1e-4
    return weights


def _clip(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    """Clip as many gradients as the shape has rows, of which none is too large."""
    weights = _weights(shape, dtype)
    adaptive = name == "clip_grad_adaptive_"
    ours = getattr(lightning_kernels, name)
    peer: Any = (
        import_module("timm.utils.agc").adaptive_clip_grad
        if adaptive
        else getattr(torch.nn.utils, name)
    )
    limit = 0.1 if adaptive else 1e3
    return Candidates(lambda: ours(weights, limit), lambda: peer(weights, limit), ())


def _clip_in_step(shape: Shape, dtype: torch.dtype) -> Candidates:
    """Find the number to divide by, and clip: torch has no function for the former."""
    clip = _clip(shape, dtype, name="clip_grad_norm_")
    weights = _weights(shape, dtype)
    return Candidates(lambda: lightning_kernels.clip_grad_scale(weights, 1e3), clip.peer, ())


def _clip_by_known_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    weights = _weights(shape, dtype)
    norm = torch.tensor(1.0)
    return Candidates(
        lambda: lightning_kernels.clip_grads_with_norm_(weights, 1e3, norm),
        lambda: torch.nn.utils.clip_grads_with_norm_(weights, 1e3, norm),
        (),
    )


_CHANNELS: dict[str, tuple[Shape, ...]] = {
    "dropout1d": ((2, 8, 16), (8, 768, 197)),
    "dropout2d": ((2, 8, 4, 4), (8, 64, 56, 56)),
    "dropout3d": ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28)),
    "feature_alpha_dropout": ((2, 8, 4, 4), (8, 64, 56, 56)),
}
_LAYERS_THAT_DROP: dict[str, tuple[Any, tuple[Any, ...], tuple[Shape, ...]]] = {
    "Dropout1d": (torch.nn, (), ((2, 8, 16), (8, 768, 197))),
    "Dropout2d": (torch.nn, (), MAPS),
    "Dropout3d": (torch.nn, (), ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28))),
    "AlphaDropout": (torch.nn, (), SHAPES),
    "FeatureAlphaDropout": (torch.nn, (), MAPS),
    "StochasticDepth": (torchvision.ops, ("row",), MAPS),
    "DropBlock2d": (torchvision.ops, (7,), ((1, 4, 14, 14), (32, 256, 14, 14))),
    "DropBlock3d": (torchvision.ops, (7,), ((1, 1, 8, 8, 8), (8, 64, 16, 16, 16))),
}
_CLIPPED_SHAPES = ((3, 4, 8), (100, 64, 256))
_CLIPS = {
    "clip_grad_norm_": "torch.nn.utils.clip_grad_norm_",
    "clip_grad_value_": "torch.nn.utils.clip_grad_value_",
    "clip_grad_adaptive_": "timm.utils.agc.adaptive_clip_grad",
}

DROPS_AND_CLIPS: dict[str, Op] = {
    **{
        name: Op(
            f"torchvision.ops.{name}",
            functools.partial(
                on_x,
                ours=functools.partial(getattr(lightning_kernels, name), p=DROP_RATE, block_size=7),
                peer=functools.partial(getattr(torchvision.ops, name), p=DROP_RATE, block_size=7),
            ),
            shapes,
        )
        for name, shapes in (
            ("drop_block2d", ((1, 4, 14, 14), (32, 256, 14, 14), (32, 512, 28, 28))),
            ("drop_block3d", ((1, 1, 8, 8, 8), (8, 64, 16, 16, 16))),
        )
    },
    "dropout": Op(
        "torch.nn.functional.dropout",
        functools.partial(
            on_x,
            ours=functools.partial(lightning_kernels.dropout, p=DROP_RATE),
            peer=functools.partial(torch.nn.functional.dropout, p=DROP_RATE),
        ),
    ),
    **{
        name: Op(
            f"torch.nn.functional.{name}",
            functools.partial(_dropout_of_channels, name=name),
            shapes,
        )
        for name, shapes in _CHANNELS.items()
    },
    "alpha_dropout": Op(
        "torch.nn.functional.alpha_dropout",
        functools.partial(_dropout_of_channels, name="alpha_dropout"),
    ),
    **{
        f"nn.{name}": Op(
            f"{room.__name__}.{name}",
            functools.partial(_layer_that_drops, name=name, room=room, arguments=arguments),
            shapes,
        )
        for name, (room, arguments, shapes) in _LAYERS_THAT_DROP.items()
    },
    "nn.DropConnectLinear": Op("torch.nn.functional.linear", _drop_connect, ((2, 16), (256, 1024))),
    **{
        name: Op(peer, functools.partial(_clip, name=name), _CLIPPED_SHAPES, ("forward",))
        for name, peer in _CLIPS.items()
    },
    "clip_grad_scale": Op(
        "torch.nn.utils.clip_grad_norm_", _clip_in_step, _CLIPPED_SHAPES, ("forward",)
    ),
    "clip_grads_with_norm_": Op(
        "torch.nn.utils.clip_grads_with_norm_", _clip_by_known_norm, _CLIPPED_SHAPES, ("forward",)
    ),
    "stochastic_depth": Op("torchvision.ops.stochastic_depth", _stochastic_depth),
    "dropout_activation": Op("torch.nn.functional.dropout", _dropout_activation),
    "nn.Dropout": Op(
        "torch.nn.Dropout",
        functools.partial(on_x, ours=nn.Dropout(DROP_RATE), peer=torch.nn.Dropout(DROP_RATE)),
    ),
}
