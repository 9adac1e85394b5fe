"""Decides, in one place, whether Triton, its interpreter or ATen computes a call."""

import functools
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_kernels._core.triton import HAS_TRITON, INTERPRETED

Route = Literal["triton", "interpreter", "aten"]
CompiledNorms = Literal["kernels", "inductor"]

# The kernels compute in float32; float64 goes to ATen.
_SERVED_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter, torch.nn.Buffer})

_compiled_norms: CompiledNorms = "kernels"


def route(x: Tensor) -> Route:
    """Return which implementation computes a call on ``x`` in this process, at this moment.

    Args:
        x: The tensor that would be passed.

    Returns:
        ``"triton"`` for compiled kernels. ``"interpreter"`` for the same kernels, run on the CPU by
        Triton's interpreter (``TRITON_INTERPRET=1``). ``"aten"`` for PyTorch's own operators: if
        there is no Triton or no GPU of compute capability 8.0 or more; for float64, integers, empty
        and non-strided tensors; for distributed and other wrapped tensors; in forward-mode
        differentiation and ``torch.func`` transforms.
    """
    if not runs_triton(x):
        return "aten"
    return "interpreter" if INTERPRETED else "triton"


def runs_triton(x: Tensor) -> bool:
    """Return whether a kernel, compiled or interpreted, serves ``x``."""
    return (
        (x.is_cuda or INTERPRETED)  # first, because calls on the CPU must stay cheap
        and _serves_device(x.device)
        and x.dtype in _SERVED_DTYPES
        and x.numel() > 0
        and x.layout is torch.strided
        and not x.is_nested
        and (type(x) in _PLAIN_TYPES or not is_traceable_wrapper_subclass(x))
        and not is_transformed()
    )


def set_compiled_norms(norms: CompiledNorms) -> None:
    """Choose how ``torch.compile`` computes norms, for the whole process.

    Inductor can fuse its own norms with the operations around them; it can't fuse a kernel. The
    kernels read and write less than Inductor's norms. Which is faster depends on the model:
    ``python -m benchmarks fit`` measures whole training steps of both. Eager calls do not change.
    Functions that are compiled already are compiled again.

    Args:
        norms: ``"kernels"`` (the default) for the kernels of this package. ``"inductor"`` for
            torch's functions in place of layer, RMS, batch, group and instance norm, of the two
            functions that add and normalise, and of the addition of a residual without drops.

    Raises:
        ValueError: If ``norms`` is neither.

    Example:
        >>> set_compiled_norms("inductor")
        >>> set_compiled_norms("kernels")
    """
    global _compiled_norms
    if norms not in get_args(CompiledNorms):
        known = " or ".join(map(repr, get_args(CompiledNorms)))
        raise ValueError(f"set_compiled_norms expects {known}, but got {norms!r}")
    _compiled_norms = norms


def norm_runs_triton(x: Tensor) -> bool:
    """Return whether a norm's kernel serves ``x``. See :func:`set_compiled_norms`."""
    return runs_triton(x) and not (_compiled_norms == "inductor" and torch.compiler.is_compiling())


@torch.compiler.assume_constant_result
def _serves_device(device: torch.device) -> bool:
    return _probe_device(device)


@functools.cache  # in a function of its own: Dynamo warns if it traces through a cache
def _probe_device(device: torch.device) -> bool:
    """Return whether this process can run kernels on ``device``. The answer never changes."""
    if not HAS_TRITON:
        return False
    if device.type == "cuda" and not INTERPRETED and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and INTERPRETED


def is_transformed() -> bool:
    """Return whether forward-mode differentiation or a ``torch.func`` transform is active.

    Both need operators that torch can differentiate or batch itself.
    """
    if forward_ad._current_level >= 0:
        return True
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_traced(x: Tensor) -> bool:
    """Return whether a compiler or a dispatch mode must see an operator, not a launch."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or type(x) not in _PLAIN_TYPES
    )
