"""Launches kernels on the device of their tensors, and computes the sizes of grids."""

import functools
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.compiled import launch_compiled

# The interpreter has no multiprocessors. A small number of programs makes kernels loop over the
# tiles of small tensors too, so that tests cover the loops.
_INTERPRETED_MULTIPROCESSORS = 2


@functools.cache
def multiprocessor_count(device: torch.device) -> int:
    """Return the number of streaming multiprocessors of ``device``."""
    if device.type == "cpu":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def cdiv(a: int, b: int) -> int:
    """Divide and round up.

    ``triton.cdiv`` takes over a microsecond. An eager call of this package takes about 15 in all.
    """
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is at least ``n``, faster than Triton's function."""
    return 1 << (n - 1).bit_length()


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any
) -> None:
    """Launch ``kernel`` on ``device``.

    Args:
        kernel: A function decorated with ``triton.jit``.
        grid: Number of programs along each axis.
        device: The device of the tensors.
        *args: The kernel's arguments in order: tensors, numbers and ``None``.
        **constants: The kernel's ``constexpr`` arguments, and the options ``num_warps`` and
            ``maxnreg``.
    """
    if device.type == "cpu":
        _interpret(kernel, grid, args, constants)
        return
    # Fused multiply-add: a * b + c with one rounding. Triton 3.10 turns it off by default.
    constants["enable_fp_fusion"] = True
    if device.index == torch.cuda.current_device():
        launch_compiled(kernel, grid, device.index, args, constants)
    else:
        with torch.cuda.device(device):  # Triton launches on the current device
            launch_compiled(kernel, grid, device.index, args, constants)


def _interpret(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Interpret ``kernel`` on CPU tensors, with float32 copies of the bfloat16 tensors.

    The interpreter computes bfloat16 wrongly: it adds the raw bits, and it truncates where a GPU
    rounds to nearest even.
    """
    import numpy  # a dependency of the interpreter, not of this package

    widened = {
        place: _Widened(arg)
        for place, arg in enumerate(args)
        if isinstance(arg, Tensor) and arg.dtype == torch.bfloat16
    }
    arguments = [widened[place].view if place in widened else a for place, a in enumerate(args)]
    with numpy.errstate(all="ignore"):  # no warnings of nan and overflow, as on a GPU
        kernel[grid](*arguments, **constants)
    for tensor in widened.values():
        tensor.write_back()


class _Widened:
    """A float32 copy of the memory from the first to the last element of a bfloat16 tensor.

    Attributes:
        view: The copy of the tensor. It has the same strides, on which the kernel relies.
    """

    def __init__(self, tensor: Tensor) -> None:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        size = 1 + sum((count - 1) * stride for count, stride in steps)
        # .data, because autograd forbids writes to some inputs
        self._narrow = tensor.data.as_strided((size,), (1,))
        self._before = self._narrow.float()
        self._wide = self._before.clone()
        self.view = self._wide.as_strided(tensor.shape, tensor.stride())

    def write_back(self) -> None:
        """Write the elements that the kernel has changed.

        The others may have several places in the view, or belong to other tensors.
        """
        changed = self._wide.view(torch.int32) != self._before.view(torch.int32)
        self._narrow[changed] = self._wide[changed].bfloat16()
