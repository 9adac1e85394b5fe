"""What the calls have in common: their names, fake tensors, and the backward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.machine_code import backward_launches

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NCHW, NHWC = "NCHW", "NHWC"
DTYPE_NAMES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}


class Call(NamedTuple):
    """A public function that is called forward and backward on fake tensors.

    Attributes:
        run: Function that makes the call.
        bits: Least width in bits of the widest access to the tensors.
    """

    run: Callable[[], None]
    bits: int


def call(
    function: Callable[..., None], *args: Any, bits: int = 128, **options: Any
) -> tuple[str, Call]:
    """Return the name of ``function(*args, **options)``, and the call itself."""
    values = (f"{key} {_text(value)}" for key, value in options.items())
    name = " ".join((function.__name__[1:], *map(_text, args)))
    return ", ".join((name, *values)), Call(lambda: function(*args, **options), bits)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return DTYPE_NAMES.get(value, str(value)) if isinstance(value, torch.dtype) else str(value)


def tensor(dtype: torch.dtype, shape: tuple[int, ...], layout: str = NCHW) -> Tensor:
    """Return a tensor that requires a gradient."""
    x = torch.empty(shape, device="cuda", dtype=dtype, requires_grad=True)
    if layout == NCHW:
        return x
    planar = len(shape) == 4
    return x.to(memory_format=torch.channels_last if planar else torch.channels_last_3d)


def parameter(*shape: int) -> Tensor:
    """Return a parameter in float32."""
    return torch.empty(shape, device="cuda", requires_grad=True)


def parameters(size: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a norm."""
    return parameter(size), parameter(size)


@torch.no_grad()
def backward(y: Tensor, *grads: Tensor | None) -> None:
    """Run only the backward of ``y``'s own node, since autograd's engine needs a real device."""
    assert y.grad_fn is not None
    with backward_launches():
        y.grad_fn.apply(*grads)  # type: ignore[attr-defined]
