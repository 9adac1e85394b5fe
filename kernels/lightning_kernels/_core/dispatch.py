"""Decides, in one place, which route a tensor takes, and launches kernels on its device."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_kernels._core.triton import HAS_TRITON, INTERPRETED

Route = Literal["triton", "interpreter", "aten"]

# float64 is computed in float64, which is ATen's work; the kernels compute in float32.
_SERVED_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter, torch.nn.Buffer})

_leaves_norms = False  # to Inductor

# The interpreter has no multiprocessors; a small number lets small tensors exercise every loop.
_INTERPRETED_MULTIPROCESSORS = 2


def route(x: Tensor) -> Route:
    """Return the route that a call on ``x`` takes, as this process and this tensor are now.

    Args:
        x: The tensor that would be passed.

    Returns:
        ``"triton"`` for compiled kernels, ``"interpreter"`` for the same kernels run on the CPU by
        Triton's interpreter (``TRITON_INTERPRET=1``), ``"aten"`` for PyTorch's own operators:
        without Triton or a GPU of compute capability 8.0, for float64, integers, empty and
        non-strided tensors, distributed and other wrapped tensors, forward-mode differentiation
        and ``torch.func`` transforms.
    """
    if not runs_triton(x):
        return "aten"
    return "interpreter" if INTERPRETED else "triton"


def runs_triton(x: Tensor) -> bool:
    """Return whether a kernel, compiled or interpreted, serves ``x``."""
    return (
        (x.is_cuda or INTERPRETED)  # the quick answer for the CPU, whose calls must stay cheap
        and _serves_device(x.device)
        and x.dtype in _SERVED_DTYPES
        and x.numel() > 0
        and x.layout is torch.strided
        and not x.is_nested
        and (type(x) in _PLAIN_TYPES or not is_traceable_wrapper_subclass(x))
        and not _is_transformed()
    )


def without_autocast(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return ``function(x, *args)``, computed and returned in the types that it is given.

    Little is asked before, for calls on the CPU must stay cheap: there is a context only where it
    has something to turn off, and the CPU's name is not made of its device.
    """
    device = "cpu" if x.is_cpu else x.device.type
    if not torch.is_autocast_enabled(device):
        return function(x, *args)
    with torch.autocast(device, enabled=False):
        return function(x, *args)


def leave_norms_to_inductor(leave: bool = True) -> None:
    """Choose what ``torch.compile`` makes of norms: one of these kernels each, or Inductor's own.

    Inductor can fuse what is around a norm into its passes over the tensor, which it can't do with
    a kernel; the kernels read and write less than its norms do. Which is faster depends on the
    model: ``python -m benchmarks fit`` measures whole steps of both. Kernels are the default. This
    is of the whole process; what has been compiled compiles again. Eager calls are as they were.

    Args:
        leave: Whether layer, RMS, batch and group norms, and ``add_dropout_layer_norm``, become
            torch's functions where they are compiled.
    """
    global _leaves_norms
    _leaves_norms = leave


def norm_runs_triton(x: Tensor) -> bool:
    """Return whether a kernel of a norm serves ``x``, see :func:`leave_norms_to_inductor`."""
    return runs_triton(x) and not (_leaves_norms and torch.compiler.is_compiling())


@torch.compiler.assume_constant_result
def _serves_device(device: torch.device) -> bool:
    return _probe_device(device)


@functools.cache  # in a function of its own, for Dynamo warns where it would trace through a cache
def _probe_device(device: torch.device) -> bool:
    """Return whether this process can run kernels on ``device``: it never changes."""
    if not HAS_TRITON:
        return False
    if device.type == "cuda" and not INTERPRETED and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and INTERPRETED


def _is_transformed() -> bool:
    """Return whether forward-mode AD or a ``torch.func`` transform is at work, as ATen's must."""
    if forward_ad._current_level >= 0:
        return True
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_traced(x: Tensor) -> bool:
    """Return whether a compiler or a dispatch mode must see an operator rather than a launch."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or type(x) not in _PLAIN_TYPES
    )


def is_dense(x: Tensor) -> bool:
    """Return whether ``x``'s elements fill a stretch of memory, each once, in any order."""
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()


@functools.cache
def multiprocessor_count(device: torch.device) -> int:
    """Return the number of streaming multiprocessors of ``device``."""
    if device.type == "cpu":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def cdiv(a: int, b: int) -> int:
    """Divide, rounding up. Triton's own takes over a microsecond, of a call's fifteen or so."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the least power of 2 that is ``n`` or more, for a host that is in a hurry too."""
    return 1 << (n - 1).bit_length()


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any
) -> None:
    """Launch ``kernel`` on ``device``.

    Args:
        kernel: What ``triton.jit`` returned.
        grid: Number of programs along each axis.
        device: Where its tensors are.
        *args: Tensors, numbers and ``None``, in the kernel's order.
        **constants: Its ``constexpr`` arguments, and ``num_warps``.
    """
    if device.type == "cpu":
        _interpret(kernel, grid, args, constants)
        return
    constants["enable_fp_fusion"] = True  # a * b + c in one rounding: Triton 3.10 turns it off
    if device.index == torch.cuda.current_device():
        kernel[grid](*args, **constants)
    else:
        with torch.cuda.device(device):  # Triton launches on the current device, not its tensors'
            kernel[grid](*args, **constants)


def _interpret(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Run ``kernel`` on CPU tensors, bfloat16 widened meanwhile.

    The interpreter adds bfloat16 as raw bits and truncates where a GPU rounds to nearest even.
    """
    import numpy  # the interpreter's own dependency, not ours

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
        narrow.data.copy_(wide)  # through .data, for inputs that autograd guards come back too
