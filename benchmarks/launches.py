"""The calls whose machine code is tested and reported: one line for each main configuration."""

import functools
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


def _dropout(dtype: torch.dtype, alpha: bool = False, scheduled: bool = False) -> None:
    x = torch.empty(_ROWS, 1024, device="cuda", dtype=dtype, requires_grad=True)
    function = lightning_kernels.alpha_dropout if alpha else lightning_kernels.dropout
    y = function(x, torch.empty((), device="cuda") if scheduled else 0.1, training=True)
    _backward(y, torch.empty_like(y))


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

CALLS: dict[str, Callable[[], None]] = {
    **{
        f"layer_norm {name} {size}": functools.partial(_layer_norm, dtype, size)
        for name, dtype in _DTYPES.items()
        for size in _SIZES
    },
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
    **{f"dropout {name}": functools.partial(_dropout, dtype) for name, dtype in _DTYPES.items()},
    "dropout bf16, scheduled": functools.partial(_dropout, torch.bfloat16, scheduled=True),
    "alpha_dropout bf16": functools.partial(_dropout, torch.bfloat16, alpha=True),
    "alpha_dropout bf16, scheduled": functools.partial(_dropout, torch.bfloat16, True, True),
}


def launches_of(name: str) -> list[Launch]:
    """Return the kernel launches of the call named ``name`` in :data:`CALLS`."""
    with record_launches() as launches:
        CALLS[name]()
    return launches
