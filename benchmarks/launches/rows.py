"""Calls of the row norms: layer norm, RMS norm, and both after an addition with dropout."""

import torch

import lightning_kernels
from benchmarks.launches.inputs import (
    BF16,
    FP16,
    FP32,
    NCHW,
    NHWC,
    Call,
    backward,
    call,
    parameter,
    parameters,
    tensor,
)


def _layer_norm(dtype: torch.dtype, shape: tuple[int, ...], affine: bool = True) -> None:
    x = tensor(dtype, shape)
    weight, bias = (parameter(shape[-1]) if affine else None for _ in range(2))
    y = lightning_kernels.layer_norm(x, shape[-1:], weight, bias)
    backward(y, torch.empty_like(y), None)


def _layer_norm2d(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    """Normalise the channels of images in either layout, without a copy."""
    x = tensor(dtype, shape, layout).movedim(1, -1)
    y = lightning_kernels.layer_norm(x, shape[1:2], *parameters(shape[1]))
    backward(y, torch.empty_like(y), None)


def _rms_norm(dtype: torch.dtype, shape: tuple[int, ...], heads: bool = False) -> None:
    """Normalise rows, or with ``heads`` the queries within a tensor of queries, keys and values."""
    x = tensor(dtype, (shape[0], 3, *shape[1:]))[:, 1] if heads else tensor(dtype, shape)
    y = lightning_kernels.rms_norm(x, shape[-1:], parameter(shape[-1]))
    backward(y, torch.empty_like(y), None)


def _add_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    norm: str = "layer_norm",
    residual: torch.dtype | None = None,
    layer_scale: bool = False,
    used: str = "yz",
    training: bool = True,
) -> None:
    x, other = tensor(dtype, shape), tensor(residual or dtype, shape)
    weight, bias = parameters(shape[-1])
    y, z = getattr(lightning_kernels, f"add_dropout_{norm}")(
        x, other, shape[-1:], weight, *([bias] if norm == "layer_norm" else []), p=0.1,
        drop_path=0.1, layer_scale=parameter(shape[-1]) if layer_scale else None,
        training=training,
    )  # fmt: skip
    grads = (torch.empty_like(t) if name in used else None for name, t in (("y", y), ("z", z)))
    backward(y, *grads, None)


CALLS: dict[str, Call] = dict(
    [
        # Rows: ViT, GPT-2, Llama, ConvNeXt, attention's queries and keys, and tiny shapes.
        call(_layer_norm, BF16, (256, 197, 768)),
        call(_layer_norm, BF16, (128, 197, 1024)),
        call(_layer_norm, BF16, (8, 1024, 768)),
        call(_layer_norm, BF16, (8, 1024, 1024)),
        # Rows of 5 or 7 pieces: a thread has 4 elements of a piece.
        call(_layer_norm, BF16, (8, 1024, 1280), bits=64),
        call(_layer_norm, BF16, (8, 1024, 1600), bits=64),
        call(_layer_norm, BF16, (8192, 2048)),
        call(_layer_norm, BF16, (8192, 4096)),
        call(_layer_norm, BF16, (8192, 5120)),
        call(_layer_norm, BF16, (8192, 8192)),
        call(_layer_norm, BF16, (4096, 16384)),
        call(_layer_norm, BF16, (262144, 128)),
        call(_layer_norm, BF16, (1, 128), bits=16),  # one thread per element
        call(_layer_norm, BF16, (256, 1024)),
        call(_layer_norm, BF16, (256, 197, 768), affine=False),
        call(_layer_norm, FP16, (256, 197, 768)),
        call(_layer_norm, FP32, (256, 197, 768)),
        call(_layer_norm, FP32, (8, 1024, 1600)),
        call(_layer_norm, FP32, (8192, 8192)),
        call(_layer_norm2d, BF16, (128, 96, 56, 56), NHWC),
        call(_layer_norm2d, BF16, (128, 128, 56, 56), NHWC),
        call(_layer_norm2d, BF16, (128, 192, 28, 28), NHWC),
        call(_layer_norm2d, BF16, (128, 256, 28, 28), NHWC),
        call(_layer_norm2d, BF16, (128, 384, 14, 14), NHWC),
        call(_layer_norm2d, BF16, (128, 512, 14, 14), NHWC),
        call(_layer_norm2d, BF16, (128, 768, 7, 7), NHWC),
        call(_layer_norm2d, BF16, (128, 1024, 7, 7), NHWC),
        call(_layer_norm2d, BF16, (128, 96, 56, 56), NCHW),
        call(_layer_norm2d, BF16, (128, 128, 56, 56), NCHW),
        call(_layer_norm2d, BF16, (128, 192, 28, 28), NCHW),
        call(_layer_norm2d, BF16, (128, 256, 28, 28), NCHW),
        call(_layer_norm2d, BF16, (128, 384, 14, 14), NCHW),
        call(_layer_norm2d, FP32, (128, 96, 56, 56), NCHW),
        # More than 2**31 elements: 64-bit offsets.
        call(_layer_norm, BF16, (600_000, 4096)),
        call(_rms_norm, BF16, (8192, 2048)),
        call(_rms_norm, BF16, (8192, 4096)),
        call(_rms_norm, BF16, (8192, 5120)),
        call(_rms_norm, BF16, (8192, 8192)),
        call(_rms_norm, BF16, (4096, 16384)),
        call(_rms_norm, BF16, (262144, 128)),
        call(_rms_norm, BF16, (8192, 32, 128), heads=True),
        call(_rms_norm, FP32, (8192, 8192)),
        call(_rms_norm, BF16, (1, 128), bits=16),
        call(_rms_norm, BF16, (256, 1024)),
        call(_add_norm, BF16, (256, 197, 768)),
        call(_add_norm, BF16, (128, 197, 1024)),
        call(_add_norm, BF16, (8, 1024, 768)),
        call(_add_norm, BF16, (8, 1024, 1024)),
        call(_add_norm, BF16, (8, 1024, 1280), bits=64),
        call(_add_norm, BF16, (8, 1024, 1600), bits=64),
        call(_add_norm, BF16, (8, 1024, 4096)),
        call(_add_norm, BF16, (8, 1024, 8192)),
        call(_add_norm, BF16, (8192, 2048)),
        call(_add_norm, BF16, (8192, 4096)),
        call(_add_norm, BF16, (8192, 5120)),
        call(_add_norm, BF16, (8192, 8192)),
        call(_add_norm, BF16, (256, 1024)),
        call(_add_norm, BF16, (1, 128), bits=16),
        call(_add_norm, BF16, (256, 197, 768), layer_scale=True, bits=64),
        call(_add_norm, BF16, (8, 1024, 4096), layer_scale=True),
        call(_add_norm, BF16, (256, 197, 768), residual=FP32),
        call(_add_norm, BF16, (8, 1024, 4096), residual=FP32),
        call(_add_norm, BF16, (256, 197, 768), used="y"),
        call(_add_norm, BF16, (256, 197, 768), used="z"),
        call(_add_norm, BF16, (256, 197, 768), training=False),
        call(_add_norm, BF16, (8192, 4096), norm="rms_norm"),
        call(_add_norm, FP16, (256, 197, 768)),
        call(_add_norm, FP32, (8, 1024, 1600)),
        call(_add_norm, FP32, (8, 1024, 8192)),
    ]
)
