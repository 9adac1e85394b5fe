"""Tensors and comparisons that the tests of batch norm share."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import batch_norm
from tests.kernels.reference import assert_as_right_as_torch

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d


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
    layout: torch.memory_format | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Tensor]:
    """Return an input with an offset per channel, a weight, a bias and a residual."""
    offset = torch.randn(shape[1], device=device).reshape(-1, *[1] * (len(shape) - 2))
    x, residual = ((torch.randn(shape, device=device) * 2 + offset).to(dtype) for _ in range(2))
    if layout is not None:
        x, residual = (t.contiguous(memory_format=layout) for t in (x, residual))
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (torch.randn(shape[1], device=device, dtype=parameter) for _ in range(2))
    return [x, weight, bias, residual]


def running(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return the same running mean and variance every time."""
    dtype = dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)
    mean = torch.linspace(-1, 1, x.shape[1], device=x.device, dtype=torch.float64).to(dtype)
    return mean, mean.abs() + 0.5


def both(
    training: bool = True,
    activation: str | None = None,
    eps: float = 1e-5,
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return ours and torch's as functions of x, weight, bias and perhaps residual."""

    def ours(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None = None) -> Tensor:
        return batch_norm(
            x, *running(x), w, b, training, eps=eps, activation=activation, residual=r
        )

    def torchs(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None = None) -> Tensor:
        y = F.batch_norm(x, *running(x), w, b, training, eps=eps)
        y = y if r is None else y + r
        return y if activation is None else ACTIVATIONS[activation](y)

    return ours, torchs


def check(
    shape: tuple[int, ...],
    layout: torch.memory_format | None,
    device: str,
    dtype: torch.dtype = torch.float32,
    offset: float = 0.0,
    present: tuple[bool, bool, bool] = (True, True, True),
    **options: Any,
) -> None:
    """Compare with torch on fresh tensors of this kind, ``present`` the optional ones."""

    def draw() -> tuple[list[Tensor | None], Tensor]:
        x, *others = make(shape, layout, dtype, device)
        given = [t if there else None for t, there in zip(others, present, strict=True)]
        return [x + offset, *given], torch.randn_like(x)

    assert_as_right_as_torch(*both(**options), draw, options.get("activation"))
