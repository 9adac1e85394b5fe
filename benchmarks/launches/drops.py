"""Calls of the functions that drop elements, channels, branches and blocks."""

import torch
from torch import Tensor

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
    tensor,
)


def _dropout(dtype: torch.dtype, shape: tuple[int, ...], scheduled: bool = False) -> None:
    x = tensor(dtype, shape)
    y = lightning_kernels.dropout(x, _rate(scheduled), training=True)
    backward(y, torch.empty_like(y))


def _alpha_dropout(dtype: torch.dtype, shape: tuple[int, ...], scheduled: bool = False) -> None:
    x = tensor(dtype, shape)
    y = lightning_kernels.alpha_dropout(x, _rate(scheduled), training=True)
    backward(y, torch.empty_like(y))


def _dropout2d(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    x = tensor(dtype, shape, layout)
    y = lightning_kernels.dropout2d(x, 0.1, training=True)
    backward(y, torch.empty_like(y))


def _feature_alpha_dropout(
    dtype: torch.dtype, shape: tuple[int, ...], layout: str, scheduled: bool = False
) -> None:
    x = tensor(dtype, shape, layout)
    y = lightning_kernels.feature_alpha_dropout(x, _rate(scheduled), training=True)
    backward(y, torch.empty_like(y))


def _stochastic_depth(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str = NCHW,
    residual: bool = True,
    layer_scale: bool = True,
) -> None:
    x, other = (tensor(dtype, shape, layout) for _ in range(2))
    channels = (shape[1], 1, 1) if len(shape) == 4 else shape[-1:]
    y = lightning_kernels.stochastic_depth(
        x, 0.1, "row", residual=other if residual else None,
        layer_scale=parameter(*channels) if layer_scale else None,
    )  # fmt: skip
    backward(y, torch.empty_like(y))


def _dropout_activation(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    activation: str = "gelu",
    bias: bool = True,
    training: bool = True,
) -> None:
    x = tensor(dtype, shape)
    shift = tensor(dtype, shape[-1:]) if bias else None
    y = lightning_kernels.dropout_activation(x, activation, 0.1, training, bias=shift)
    backward(y, torch.empty_like(y))


def _drop_block(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    per_channel: bool = True,
    scheduled: bool = False,
) -> None:
    x, planar = tensor(dtype, shape, layout), len(shape) == 4
    function = lightning_kernels.drop_block2d if planar else lightning_kernels.drop_block3d
    y = function(x, _rate(scheduled), 7 if planar else 3, per_channel=per_channel)
    backward(y, torch.empty_like(y), None, None)


def _rate(scheduled: bool) -> Tensor | float:
    return torch.empty((), device="cuda") if scheduled else 0.1


CALLS: dict[str, Call] = dict(
    [
        # Dropout of elements, of channels and of branches.
        call(_dropout, BF16, (256, 197, 768)),
        call(_dropout, BF16, (256, 2048, 7, 7)),
        call(_dropout, BF16, (1, 128)),
        call(_dropout, BF16, (256, 197, 768), scheduled=True),
        call(_dropout, FP16, (256, 197, 768)),
        call(_dropout, FP32, (256, 197, 768)),
        call(_alpha_dropout, BF16, (8192, 1024)),
        call(_alpha_dropout, BF16, (8192, 1024), scheduled=True),
        call(_dropout, BF16, (600_000, 4096)),
        call(_dropout2d, BF16, (256, 64, 56, 56), NHWC),
        call(_dropout2d, BF16, (256, 128, 56, 56), NHWC),
        call(_dropout2d, BF16, (256, 256, 56, 56), NHWC),
        call(_dropout2d, BF16, (256, 64, 112, 112), NCHW),
        call(_dropout2d, BF16, (256, 2048, 7, 7), NHWC),
        call(_dropout2d, BF16, (256, 64, 56, 56), NCHW),
        call(_dropout2d, BF16, (256, 1024, 14, 14), NCHW, bits=64),
        call(_dropout2d, BF16, (256, 2048, 7, 7), NCHW, bits=16),
        call(_feature_alpha_dropout, BF16, (256, 64, 56, 56), NHWC),
        call(_feature_alpha_dropout, BF16, (256, 64, 56, 56), NCHW, scheduled=True),
        call(_stochastic_depth, BF16, (256, 197, 768)),
        call(_stochastic_depth, BF16, (128, 96, 56, 56), NHWC),
        call(_stochastic_depth, BF16, (128, 192, 28, 28), NHWC),
        call(_stochastic_depth, BF16, (128, 256, 28, 28), NHWC),
        call(_stochastic_depth, BF16, (128, 384, 14, 14), NHWC),
        call(_stochastic_depth, BF16, (128, 768, 7, 7), NHWC),
        call(_stochastic_depth, BF16, (128, 96, 56, 56), NCHW),
        call(_stochastic_depth, BF16, (128, 384, 14, 14), NCHW, bits=64),
        call(_stochastic_depth, BF16, (128, 512, 14, 14), NCHW, bits=64),
        call(_stochastic_depth, BF16, (128, 768, 7, 7), NCHW, bits=16),
        call(_stochastic_depth, BF16, (128, 1024, 7, 7), NCHW, bits=16),
        call(_stochastic_depth, BF16, (128, 96, 56, 56), NHWC, layer_scale=False),
        call(_stochastic_depth, BF16, (128, 96, 56, 56), NCHW, residual=False, layer_scale=False),
        call(_dropout_activation, BF16, (256, 197, 3072)),
        call(_dropout_activation, BF16, (128, 197, 4096)),
        call(_dropout_activation, BF16, (8, 1024, 6400)),
        call(_dropout_activation, BF16, (1, 128), bits=16),
        call(_dropout_activation, BF16, (256, 1024)),
        call(_dropout_activation, BF16, (256, 197, 3072), activation="elu"),
        call(_dropout_activation, BF16, (256, 197, 3072), activation="silu"),
        call(_dropout_activation, BF16, (256, 197, 3072), activation="silu", training=False),
        call(_dropout_activation, BF16, (256, 197, 3072), bias=False),
        call(_dropout_activation, FP16, (256, 197, 3072)),
        call(_dropout_activation, FP32, (256, 197, 3072)),
        call(_drop_block, BF16, (256, 512, 28, 28), NHWC),
        call(_drop_block, BF16, (256, 1024, 14, 14), NHWC),
        call(_drop_block, BF16, (256, 2048, 7, 7), NHWC),
        call(_drop_block, BF16, (256, 512, 28, 28), NCHW),
        call(_drop_block, BF16, (256, 1024, 14, 14), NCHW),
        call(_drop_block, BF16, (256, 2048, 7, 7), NCHW),
        call(_drop_block, BF16, (32, 64, 128, 128), NCHW),
        call(_drop_block, BF16, (32, 64, 33, 67), NCHW),
        call(_drop_block, BF16, (32, 64, 16, 16, 16), NCHW),
        call(_drop_block, BF16, (256, 512, 28, 28), NHWC, per_channel=False, scheduled=True),
        call(_drop_block, FP32, (256, 512, 28, 28), NCHW),
    ]
)
