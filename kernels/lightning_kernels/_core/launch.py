"""Launches a kernel on the device of its tensors, and the integer arithmetic of grids."""

import functools
from typing import Any

import torch
from torch import Tensor

# The interpreter has no multiprocessors. With a small number, small tensors run every loop.
_INTERPRETED_MULTIPROCESSORS = 2


@functools.cache
def multiprocessor_count(device: torch.device) -> int:
    """Return the number of streaming multiprocessors of ``device``."""
    if device.type == "cpu":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def cdiv(a: int, b: int) -> int:
    """Divide and round up. Triton's own function takes over a microsecond; a call about fifteen."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is at least ``n``, faster than Triton's own function."""
    return 1 << (n - 1).bit_length()


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any
) -> None:
    """Launch ``kernel`` on ``device``.

    Args:
        kernel: A function decorated with ``triton.jit``.
        grid: Number of programs along each axis.
        device: The device of the tensors.
        *args: Tensors, numbers and ``None``, in the kernel's order.
        **constants: The kernel's ``constexpr`` arguments, ``num_warps`` and ``maxnreg``.
    """
    if device.type == "cpu":
        _interpret(kernel, grid, args, constants)
        return
    constants["enable_fp_fusion"] = True  # a * b + c in one rounding: Triton 3.10 turns it off
    if device.index == torch.cuda.current_device():
        kernel[grid](*args, **constants)
    else:
        with torch.cuda.device(device):  # Triton launches on the current device
            kernel[grid](*args, **constants)


def _interpret(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Run ``kernel`` on CPU tensors, with float32 copies of the bfloat16 tensors.

    The interpreter adds bfloat16 as raw bits, and truncates where a GPU rounds to nearest even.
    """
    import numpy  # a dependency of the interpreter, not of this package

    widened = [
        (i, arg, arg.float())
        for i, arg in enumerate(args)
        if isinstance(arg, Tensor) and arg.dtype == torch.bfloat16
    ]
    arguments = list(args)
    for i, _, wide in widened:
        arguments[i] = wide
    with numpy.errstate(all="ignore"):  # a GPU does not warn of nan either
        kernel[grid](*arguments, **constants)
    for _, narrow, wide in widened:
        narrow.data.copy_(wide)  # .data: inputs that autograd guards are copied back too
