"""What all norms ask of their weight and bias."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_parameter(
    function: str, name: str, parameter: Tensor | None, shape: Sequence[int], why: str, x: Tensor
) -> None:
    """Raise if a parameter doesn't go with an input, saying what was got and what is expected.

    Args:
        function: Who asks.
        name: The parameter's.
        parameter: ``None`` passes.
        shape: What it has to have.
        why: What that shape is.
        x: The input, by whose device and type it has to go.

    Raises:
        RuntimeError: If the shape, the device or the dtype is another.
    """
    if parameter is None:
        return
    if tuple(parameter.shape) != tuple(shape):
        raise RuntimeError(
            f"{function} expects {name} of shape {list(shape)} ({why}), but got"
            f" {list(parameter.shape)}"
        )
    if parameter.device != x.device:
        raise RuntimeError(
            f"{function} expects {name} on {x.device} like the input, but got {parameter.device}"
        )
    if parameter.dtype not in (x.dtype, torch.float32):
        raise RuntimeError(
            f"{function} expects {name} of {x.dtype} (the input's) or torch.float32, but got"
            f" {parameter.dtype}"
        )
