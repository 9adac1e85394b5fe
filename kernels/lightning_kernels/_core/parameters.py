"""What all norms ask of their shape, weight and bias."""

from collections.abc import Sequence

import torch
from torch import Tensor


def shape_of(normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions to normalise, as a tuple.

    Raises:
        TypeError: If it is a number.
    """
    if isinstance(normalized_shape, int):
        raise TypeError(
            f"normalized_shape must be a sequence of ints, got {normalized_shape}: pass"
            f" ({normalized_shape},)"
        )
    return tuple(normalized_shape)


def check_rows(function: str, input: Tensor, shape: tuple[int, ...]) -> None:
    """Raise if the last dimensions of ``input`` are not those to normalise."""
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"{function} expects an input whose last dimensions are normalized_shape, at least"
            f" one, but got normalized_shape {list(shape)} and input {list(input.shape)}"
        )


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
    if parameter.shape != shape and tuple(parameter.shape) != tuple(shape):
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
