"""What the tests of group and instance norm share."""

import math
from collections.abc import Callable
from itertools import repeat

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import group_norm, instance_norm
from lightning_kernels._core.launch import cdiv
from tests.kernels.reference import assert_as_right_as_torch

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d
Layout = torch.memory_format | None
_CHANNELS = 32  # that a comparison has at least, but for tensors of few elements or many
_FEW, _MANY = 64, 8192
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
}


def make(
    shape: tuple[int, ...],
    layout: Layout = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Tensor]:
    """Return an input with an offset per channel, a weight and a bias."""
    offset = torch.randn(shape[1], device=device).reshape(-1, *[1] * (len(shape) - 2))
    x = (torch.randn(shape, device=device) * 2 + offset).to(dtype)
    if layout is not None:
        x = x.contiguous(memory_format=layout)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    return [x, *(torch.randn(shape[1], device=device, dtype=parameter) for _ in range(2))]


def both(
    groups: int | None, activation: str | None = None, eps: float = 1e-5
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return ours and torch's as functions of x, weight and bias; instance norm for ``None``."""

    def ours(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        if groups is None:
            return instance_norm(x, None, None, w, b, eps=eps, activation=activation)
        return group_norm(x, groups, w, b, eps, activation)

    def torchs(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        if not x.is_cpu:
            w, b = (p if p is None else p.to(x.dtype) for p in (w, b))
        if w is None and b is not None:
            w = torch.ones_like(b)  # without one torch 2.11 has no gradients
        if groups is None:
            # Torch's instance norm returns wrong gradients for those that come channels last.
            y = F.group_norm(x.contiguous(), x.shape[1], w, b, eps)
        else:
            y = F.group_norm(x, groups, w, b, eps)
        return y if activation is None else ACTIVATIONS[activation](y)

    return ours, torchs


def check(
    shape: tuple[int, ...],
    groups: int | None,
    layout: Layout,
    device: str,
    dtype: torch.dtype = torch.float32,
    offset: float = 0.0,
    present: tuple[bool, bool] = (True, True),
    activation: str | None = None,
    eps: float = 1e-5,
) -> None:
    """Compare with torch on fresh tensors, weight and bias where they are ``present``.

    A gradient of a few channels is as many numbers, of which torch's may happen to be rounded
    right: their error is taken over that of several small tensors, which go in as one batch.
    """
    size = math.prod(shape)  # those of a few elements are drawn several times in any case
    draws = max(1, min(cdiv(_CHANNELS, shape[1]), size // _FEW, _MANY // size))

    def draw() -> tuple[list[Tensor | None], Tensor]:
        drawn = [make(shape, layout, dtype, device) for _ in range(draws)]
        x = torch.cat([one[0] for one in drawn]) + offset
        parameters = (
            torch.stack([one[i] for one in drawn]) if there else None
            for i, there in enumerate(present, start=1)
        )
        return [x, *parameters], torch.randn_like(x)

    def one_by_one(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, *parameters: Tensor | None) -> Tensor:
            each = (repeat(None, draws) if p is None else p.unbind() for p in parameters)
            return torch.cat([function(*one) for one in zip(x.chunk(draws), *each, strict=True)])

        return call

    ours, torchs = map(one_by_one, both(groups, activation, eps))
    assert_as_right_as_torch(ours, torchs, draw, activation)
