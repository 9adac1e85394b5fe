"""Launches compiled kernels by a key of our own, with less work for the host than Triton's.

At each launch ``kernel[grid](...)`` binds the arguments, describes each of them, writes a text of
all options and compares global variables. Here a tuple of the arguments' types and alignments finds
the compiled kernel, whose own launcher is called at once. The key distinguishes at least what
Triton distinguishes: whether the address of a tensor is a multiple of 16 bytes, and whether an
integer is 1, a multiple of 16, or needs 64 bits.
"""

from typing import Any

import torch

from lightning_kernels._core.triton import HAS_TRITON, triton

_KNOWN = ("3.6", "3.7", "3.8", "3.9")  # releases of Triton whose launcher takes these arguments
_IS_KNOWN: bool = HAS_TRITON and triton.__version__.startswith(_KNOWN)

# A compiled kernel (which unloads its code when it is deleted), its launcher, its function, its
# metadata, and its constants in the order of the parameters.
_Launcher = tuple[Any, Any, Any, Any, tuple[Any, ...]]

_launchers: dict[tuple[Any, ...], _Launcher] = {}


def launch_compiled(
    kernel: Any, grid: tuple[int, ...], device: int, args: tuple[Any, ...],
    constants: dict[str, Any],
) -> None:  # fmt: skip
    """Launch ``kernel`` on the current device. The first launch with such arguments compiles it.

    Triton's own path is taken if a hook or the debug mode of Triton wants to see launches, and in
    releases of Triton that are not known here.

    Args:
        kernel: A function decorated with ``triton.jit``.
        grid: Number of programs along each axis.
        device: Index of the current device.
        args: The kernel's arguments in order: tensors, numbers and ``None``.
        constants: The kernel's ``constexpr`` arguments, which come after ``args``, and options.
    """
    if not _IS_KNOWN or _is_watched(kernel):
        kernel[grid](*args, **constants)
        return
    kinds, values = describe(args)
    key = (id(kernel), device, *kinds, *constants.values())
    launcher = _launchers.get(key)
    if launcher is None:
        compiled = kernel[grid](*args, **constants)
        if isinstance(compiled, triton.compiler.CompiledKernel):  # not one that still compiles
            rest = tuple(constants[name] for name in kernel.arg_names[len(args) :])
            run, function = compiled.run, compiled.function  # in this order: the first loads it
            _launchers[key] = compiled, run, function, compiled.packed_metadata, rest
        return
    _, run, function, metadata, rest = launcher
    x, y, z = (*grid, 1, 1)[:3]
    stream = torch._C._cuda_getCurrentRawStream(device)
    run(x, y, z, stream, function, metadata, None, None, None, *values, *rest)


def describe(args: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    """Return what Triton may specialise a kernel for, and the values that a launcher takes.

    Args:
        args: Arguments of a kernel: tensors, numbers and ``None``.

    Returns:
        A description of each argument, and the argument, or the address of a tensor.
    """
    kinds: list[Any] = []
    values: list[Any] = []
    for arg in args:
        kind = type(arg)
        value = arg
        if kind is int:
            kinds.append(_kind_of_integer(arg))
        elif arg is None or kind is float or kind is bool:
            kinds.append(kind)
        else:
            value = arg.data_ptr()
            kinds.append(arg.dtype if value % 16 == 0 else (arg.dtype,))
        values.append(value)
    return kinds, values


def _kind_of_integer(number: int) -> int:
    if number == 1:
        return 1
    bits = 32 if -(1 << 31) <= number < 1 << 31 else 64 if number < 1 << 63 else 65
    return -bits if number % 16 == 0 else bits


def _is_watched(kernel: Any) -> bool:
    """Return whether somebody wants to see each launch, such as a profiler."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or runtime.debug
        or runtime.add_stages_inspection_hook is not None
        or kernel.pre_run_hooks
    )
