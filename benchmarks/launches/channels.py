"""Calls of the norms of channels: batch, group and instance norm."""

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
    parameters,
    tensor,
)


def _batch_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    residual: bool = False,
    activation: str | None = "relu",
    training: bool = True,
    affine: bool = True,
) -> None:
    x, other = (tensor(dtype, shape, layout) for _ in range(2))
    mean, var = (torch.empty(shape[1], device="cuda") for _ in range(2))
    weight, bias = parameters(shape[1]) if affine else (None, None)
    y = lightning_kernels.batch_norm(
        x, mean, var, weight, bias, training,
        activation=activation, residual=other if residual else None,
    )  # fmt: skip
    backward(y, torch.empty_like(y), None, None)


def _batch_norm1d(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    _batch_norm(dtype, shape, NCHW, activation=None)


def _group_norm(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    groups: int = 32,
    activation: str | None = "silu",
    affine: bool = True,
) -> None:
    x = tensor(dtype, shape, layout)
    weight, bias = parameters(shape[1]) if affine else (None, None)
    y = lightning_kernels.group_norm(x, groups, weight, bias, activation=activation)
    backward(y, torch.empty_like(y), None)


def _instance_norm(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    _group_norm(dtype, shape, layout, shape[1], None)


CALLS: dict[str, Call] = dict(
    [
        # ResNet-50, channels last: every stage, without and with a residual.
        call(_batch_norm, BF16, (256, 64, 112, 112), NHWC),
        call(_batch_norm, BF16, (256, 64, 56, 56), NHWC),
        call(_batch_norm, BF16, (256, 128, 28, 28), NHWC),
        call(_batch_norm, BF16, (256, 256, 14, 14), NHWC),
        call(_batch_norm, BF16, (256, 512, 7, 7), NHWC),
        call(_batch_norm, BF16, (256, 64, 112, 112), NHWC, residual=True),
        call(_batch_norm, BF16, (256, 256, 56, 56), NHWC, residual=True),
        call(_batch_norm, BF16, (256, 512, 28, 28), NHWC, residual=True),
        call(_batch_norm, BF16, (256, 1024, 14, 14), NHWC, residual=True),
        call(_batch_norm, BF16, (256, 2048, 7, 7), NHWC, residual=True),
        call(_batch_norm, BF16, (256, 1024, 14, 14), NHWC, activation=None),
        call(_batch_norm, BF16, (32, 64, 56, 56), NHWC),
        call(_batch_norm, BF16, (32, 2048, 7, 7), NHWC),
        call(_batch_norm, BF16, (64, 1024, 7, 7), NHWC),
        call(_batch_norm1d, BF16, (100000, 32)),
        call(_batch_norm, BF16, (256, 256, 14, 14), NHWC, residual=True, activation="gelu"),
        call(_batch_norm, BF16, (256, 256, 14, 14), NHWC, activation="silu", training=False),
        call(_batch_norm, FP16, (256, 64, 56, 56), NHWC),
        call(_batch_norm, FP32, (256, 64, 56, 56), NHWC),
        # Contiguous: planes of 112x112, 56x56 and 28x28 begin at multiples of 16 elements, planes
        # of 14x14 at multiples of 4 elements, planes of 7x7 at any element. Accesses are as wide in
        # all of them, if a sample has a multiple of 8 elements.
        call(_batch_norm, BF16, (256, 64, 112, 112), NCHW),
        call(_batch_norm, BF16, (256, 64, 56, 56), NCHW),
        call(_batch_norm, BF16, (256, 128, 28, 28), NCHW),
        call(_batch_norm, BF16, (256, 256, 14, 14), NCHW),
        call(_batch_norm, BF16, (256, 1024, 14, 14), NCHW),
        call(_batch_norm, BF16, (256, 512, 7, 7), NCHW),
        call(_batch_norm, BF16, (256, 64, 112, 112), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 256, 56, 56), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 128, 28, 28), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 512, 28, 28), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 256, 14, 14), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 1024, 14, 14), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 2048, 7, 7), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 256, 56, 56), NCHW, activation=None),
        call(_batch_norm, BF16, (32, 64, 56, 56), NCHW),
        call(_batch_norm, BF16, (32, 128, 28, 28), NCHW),
        call(_batch_norm, BF16, (32, 256, 14, 14), NCHW),
        call(_batch_norm, BF16, (32, 512, 7, 7), NCHW),
        call(_batch_norm, BF16, (32, 64, 56, 56), NCHW, residual=True),
        call(_batch_norm, BF16, (32, 512, 7, 7), NCHW, residual=True),
        call(_batch_norm, BF16, (64, 1024, 7, 7), NCHW),
        call(_batch_norm, BF16, (1024, 64, 192, 192), NHWC),
        call(_batch_norm, BF16, (4, 256, 14, 14), NCHW),
        call(_batch_norm, BF16, (64, 33, 15, 15), NCHW, residual=True, bits=16),
        call(_batch_norm, BF16, (64, 33, 15, 15), NHWC, residual=True, bits=16),
        call(_batch_norm, BF16, (256, 48, 112, 112), NCHW, residual=True),
        call(_batch_norm, BF16, (256, 64, 56, 56), NCHW, affine=False),
        call(_batch_norm, BF16, (256, 64, 56, 56), NCHW, residual=True, activation="gelu"),
        call(_batch_norm, BF16, (256, 64, 56, 56), NCHW, activation="hardswish", training=False),
        call(_batch_norm, FP32, (256, 64, 56, 56), NCHW),
        # A program may hold a whole group in both passes, only in the forward pass, or in neither.
        call(_group_norm, BF16, (8, 320, 64, 64), NHWC),
        call(_group_norm, BF16, (8, 640, 32, 32), NHWC),
        call(_group_norm, BF16, (8, 1280, 16, 16), NHWC),
        call(_group_norm, BF16, (8, 1280, 8, 8), NHWC),
        call(_group_norm, BF16, (2, 960, 96, 96), NHWC),
        call(_group_norm, BF16, (256, 256, 56, 56), NHWC),
        call(_group_norm, BF16, (256, 1024, 14, 14), NHWC),
        call(_group_norm, BF16, (8, 320, 64, 64), NCHW),
        call(_group_norm, BF16, (8, 640, 32, 32), NCHW),
        call(_group_norm, BF16, (8, 1280, 16, 16), NCHW),
        call(_group_norm, BF16, (8, 1280, 8, 8), NCHW),
        call(_group_norm, BF16, (2, 960, 96, 96), NCHW),
        call(_group_norm, BF16, (256, 256, 56, 56), NCHW),
        call(_group_norm, BF16, (256, 1024, 14, 14), NCHW, bits=64),
        call(_group_norm, BF16, (32, 256, 16, 16), NCHW, activation="gelu"),
        call(_group_norm, BF16, (32, 256, 16, 16), NCHW, affine=False),
        call(_group_norm, BF16, (2, 960, 96, 96), NHWC, affine=False),
        call(_group_norm, BF16, (32, 256, 16, 16), NCHW, groups=1, activation=None),
        call(_group_norm, FP32, (8, 320, 64, 64), NHWC),
        call(_group_norm, FP32, (8, 1280, 16, 16), NCHW),
        call(_group_norm, BF16, (256, 2048, 7, 7), NHWC),
        call(_group_norm, BF16, (256, 2048, 7, 7), NCHW, bits=16),
        call(_group_norm, FP32, (8, 320, 64, 64), NCHW),
        call(_group_norm, FP32, (8, 640, 32, 32), NHWC),
        call(_group_norm, FP32, (8, 640, 32, 32), NCHW),
        call(_group_norm, FP32, (8, 1280, 16, 16), NHWC),
        call(_group_norm, FP32, (64, 256, 56, 56), NHWC),
        call(_group_norm, FP32, (64, 256, 56, 56), NCHW),
        call(_group_norm, FP32, (64, 1024, 14, 14), NHWC),
        call(_group_norm, FP32, (64, 1024, 14, 14), NCHW),
        call(_group_norm, FP32, (64, 2048, 7, 7), NHWC),
        call(_group_norm, FP32, (64, 2048, 7, 7), NCHW, bits=32),
        call(_instance_norm, BF16, (16, 128, 64, 64), NHWC),
        call(_instance_norm, BF16, (16, 128, 64, 64), NCHW),
        call(_instance_norm, BF16, (64, 64, 56, 56), NHWC),
        call(_instance_norm, BF16, (64, 64, 56, 56), NCHW),
        call(_instance_norm, BF16, (64, 128, 32, 32), NHWC),
        call(_instance_norm, BF16, (64, 128, 32, 32), NCHW),
        call(_instance_norm, BF16, (64, 512, 14, 14), NHWC),
        call(_instance_norm, BF16, (64, 512, 14, 14), NCHW, bits=64),
        call(_instance_norm, BF16, (64, 1024, 7, 7), NHWC),
        call(_instance_norm, BF16, (64, 1024, 7, 7), NCHW, bits=16),
        call(_instance_norm, FP32, (16, 128, 64, 64), NHWC),
        call(_instance_norm, FP32, (16, 128, 64, 64), NCHW),
        call(_instance_norm, BF16, (16, 32, 256, 256), NHWC),
        call(_instance_norm, BF16, (16, 32, 256, 256), NCHW),
        call(_instance_norm, BF16, (2, 32, 128, 128, 128), NHWC),
        call(_instance_norm, BF16, (2, 32, 128, 128, 128), NCHW),
    ]
)
