"""Checks of arguments. Each error names the expected and the actual value."""

import math
from collections.abc import Sequence
from reprlib import repr  # of a few hundred characters at most
from typing import Any, get_args

import torch
from torch import Tensor


def check_tensor(function: str, x: Tensor) -> None:
    """Raise TypeError if ``x`` is not a tensor.

    Functions that replace one of torch's check no more of the input's type than this. Torch's
    function computes the result or raises the error for a dtype that is not floating point.
    """
    if not isinstance(x, Tensor):
        raise not_a_tensor(function, "the input", x)


def check_floating(function: str, x: Tensor) -> None:
    """Raise TypeError if ``x`` is not a tensor, NotImplementedError if it is not floating point."""
    check_tensor(function, x)
    if not x.is_floating_point():
        raise NotImplementedError(f"{function} expects a floating-point input, but got {x.dtype}")


def check_choice(function: str, name: str, value: object, kind: Any) -> None:
    """Raise ValueError if an argument is none of the values of a ``Literal`` type ``kind``."""
    if value not in get_args(kind):
        known = " or ".join(f"{one!r}" for one in get_args(kind))
        raise ValueError(f"{function} expects {name} as {known}, but got {value!r}")


def number_of(function: str, name: str, value: object, least: float | None = None) -> float:
    """Return an argument as a float.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is nan, below ``least``, or too large for a float.
    """
    if type(value) is float and (value >= least if least is not None else value == value):
        return value  # the cheapest test first; nan fails it
    if isinstance(value, str | bytes):  # float would read the text
        raise TypeError(_no_number(function, name, value, least))
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(_no_number(function, name, value, least)) from None
    except OverflowError:
        message = _no_number(function, name, value, least)
        raise ValueError(f"{message}, which is too large for a float") from None
    if math.isnan(number) or (least is not None and number < least):
        raise ValueError(_no_number(function, name, value, least))
    return number


def _no_number(function: str, name: str, value: object, least: float | None) -> str:
    limit = "" if least is None else f" of {least:g} or more"
    return f"{function} expects {name} as a number{limit}, but got {repr(value)}"


def check_eps(function: str, eps: float | None, least: float | None = None) -> None:
    """Raise TypeError if ``eps`` is not a number, ValueError if it is nan, infinite or too small.

    Functions that replace one of torch's take a negative number where torch's function does.
    """
    if type(eps) is float and 0.0 <= eps < math.inf:  # the cheapest test first
        return
    if math.isinf(number_of(function, "eps", eps, least)):
        raise ValueError(f"{function} expects a finite eps, but got {eps}")


def dimensions_of(function: str, x: Tensor, name: str = "the input") -> int:
    """Return the number of dimensions of ``x``. Raise TypeError if ``x`` is not a tensor."""
    if not isinstance(x, Tensor):
        raise not_a_tensor(function, name, x)
    return x.dim()


def not_a_tensor(function: str, name: str, got: object) -> TypeError:
    """Return the error for an argument that has to be a tensor."""
    message = f"{function} expects {name} as a torch.Tensor, but got {type(got).__name__}"
    if isinstance(got, torch.fx.Proxy):
        message += (
            ": torch.fx can't trace a kernel. Trace torch's own layers (surgery.unfuse(model) of"
            " lightning_practices restores those that surgery.fuse replaced), name this layer a"
            " leaf in your Tracer, or use torch.export"
        )
    return TypeError(message)


def shape_of(normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions to normalise as a tuple.

    Raises:
        TypeError: If ``normalized_shape`` is not a sequence: a number is none.
    """
    if isinstance(normalized_shape, tuple):  # the cheapest test first; torch.Size is a tuple too
        return normalized_shape
    if isinstance(normalized_shape, Sequence) and not isinstance(normalized_shape, str | bytes):
        return tuple(normalized_shape)
    hint = f": pass ({normalized_shape},)" if isinstance(normalized_shape, int) else ""
    raise TypeError(
        f"normalized_shape must be a sequence of ints, got {repr(normalized_shape)}{hint}"
    )


def check_rows(
    function: str, x: Tensor, shape: tuple[int, ...], **parameters: Tensor | None
) -> None:
    """Raise RuntimeError if ``x`` or a parameter does not fit ``shape``, the normalised dimensions.

    The last dimensions of ``x`` must be ``shape``. Each parameter must have this shape, the device
    of ``x``, and the dtype of ``x`` or float32.
    """
    if not shape or x.shape[-len(shape) :] != shape:
        raise RuntimeError(
            f"{function} expects an input whose last dimensions are normalized_shape, at least"
            f" one, but got normalized_shape {list(shape)} and input {list(x.shape)}"
        )
    _check_parameters(function, x, shape, "normalized_shape", parameters)


def check_channels(
    function: str, x: Tensor, any_shape: bool = False, **parameters: Tensor | None
) -> None:
    """Raise RuntimeError if a parameter does not fit the channels of ``x``.

    Each parameter must have the shape ``(C,)``, the device of ``x``, and the dtype of ``x`` or
    float32. With ``any_shape`` its shape is not checked.
    """
    shape = None if any_shape else x.shape[1:2]
    _check_parameters(function, x, shape, "the channels of the input", parameters)


def _check_parameters(
    function: str, x: Tensor, shape: Sequence[int] | None, why: str,
    parameters: dict[str, Tensor | None],
) -> None:  # fmt: skip
    """Raise RuntimeError if the shape, device or dtype of a parameter does not fit ``x``.

    If ``shape`` is ``None``, a parameter may have any shape.
    """
    device, dtype = x.device, x.dtype
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        try:  # costs nothing, unlike isinstance of a Parameter
            size = parameter.shape
        except AttributeError:
            raise not_a_tensor(function, name, parameter) from None
        if shape is not None and size != shape and tuple(size) != tuple(shape):
            raise RuntimeError(
                f"{function} expects {name} of shape {list(shape)} ({why}), but got {list(size)}"
            )
        if parameter.device != device:
            raise RuntimeError(
                f"{function} expects {name} on {device} like the input, but got {parameter.device}"
            )
        if parameter.dtype is not dtype and parameter.dtype is not torch.float32:
            raise RuntimeError(
                f"{function} expects {name} of {dtype} (the input's) or torch.float32, but got"
                f" {parameter.dtype}"
            )


def check_residual(
    function: str, x: Tensor, residual: Tensor | None, or_float32: bool = True
) -> None:
    """Raise RuntimeError if a residual does not fit ``x``.

    Args:
        function: Name of the function that was called.
        x: The input.
        residual: The residual, or ``None``.
        or_float32: Whether the residual may be float32 if ``x`` has 16 bits.
    """
    if residual is None:
        return
    if (
        type(residual) is Tensor  # the cheapest test first
        and residual.dtype is x.dtype
        and residual.shape == x.shape
        and residual.device == x.device
    ):
        return
    dtypes = {x.dtype, torch.float32} if or_float32 and x.itemsize == 2 else {x.dtype}
    try:
        fits = (residual.shape, residual.device) == (x.shape, x.device)
    except AttributeError:
        raise not_a_tensor(function, "residual", residual) from None
    if not fits or residual.dtype not in dtypes:
        expected = f"{x.dtype} (or torch.float32 for 16 bits)" if or_float32 else x.dtype
        raise RuntimeError(
            f"{function} expects residual like x, {list(x.shape)} of {expected} on {x.device}, but"
            f" got {list(residual.shape)} of {residual.dtype} on {residual.device}"
        )
