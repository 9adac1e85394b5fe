"""Decides whether Triton, Triton's interpreter or ATen computes a call."""

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_kernels._core.parameters import check_choice, not_a_tensor
from lightning_kernels._core.triton import HAS_TRITON, INTERPRETED

Route = Literal["triton", "interpreter", "aten"]
"""Who computes a call: compiled kernels, Triton's interpreter or PyTorch's own operators."""

CompiledNorms = Literal["kernels", "inductor"]
"""Who computes norms in compiled functions, see :func:`~lightning_kernels.set_compiled_norms`."""

# The kernels compute in float32, which is not precise enough for float64 inputs.
_SERVED_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter, torch.nn.Buffer})

_compiled_norms: CompiledNorms = "kernels"


def route(x: Tensor) -> Route:
    """Return which implementation would compute a call on ``x`` now, in this process.

    Args:
        x: The input tensor of the call.

    Returns:
        ``"triton"`` for compiled kernels. ``"interpreter"`` for the same kernels, run on the CPU by
        Triton's interpreter (``TRITON_INTERPRET=1``). ``"aten"`` for PyTorch's own operators, which
        compute the call in each of these cases: Triton is not installed; the device is not a GPU of
        compute capability 8.0 or more; ``x`` is float64, integer, empty or not strided; ``x`` is a
        ``DTensor`` or another wrapper subclass; forward-mode differentiation or a ``torch.func``
        transform is active.

    Example:
        >>> from lightning_kernels import route
        >>> route(torch.ones(8))  # a tensor on the CPU
        'aten'
    """
    if not isinstance(x, Tensor):
        raise not_a_tensor("route", "x", x)
    if not runs_triton(x):
        return "aten"
    return "interpreter" if INTERPRETED else "triton"


def runs_triton(x: Tensor) -> bool:
    """Return whether a kernel, compiled or interpreted, can compute a call on ``x``."""
    return (
        (x.is_cuda or INTERPRETED)  # the cheapest test first: calls on the CPU must stay cheap
        and _serves_device(x.device)
        and x.dtype in _SERVED_DTYPES
        and x.numel() > 0
        and x.layout is torch.strided
        and not x.is_nested
        and (type(x) in _PLAIN_TYPES or not is_traceable_wrapper_subclass(x))
        and not is_transformed()
    )


def set_compiled_norms(norms: CompiledNorms) -> None:
    """Choose how functions under ``torch.compile`` compute norms, for the whole process.

    Inductor can fuse its own norms with the operations around them. It can't fuse the kernels of
    this package, which read and write less memory than Inductor's norms. Which choice is faster
    depends on the model: ``python -m benchmarks fit`` measures whole training steps with both.
    Eager calls do not change. Compiled functions are compiled again at their next call.

    Args:
        norms: ``"kernels"`` (the default): the kernels of this package compute norms.
            ``"inductor"``: torch's functions compute them, so that Inductor can fuse them. This
            concerns layer, RMS, batch, group and instance norm,
            :func:`~lightning_kernels.add_dropout_layer_norm`,
            :func:`~lightning_kernels.add_dropout_rms_norm`, and
            :func:`~lightning_kernels.stochastic_depth` if it drops nothing.

    Raises:
        ValueError: If ``norms`` is neither ``"kernels"`` nor ``"inductor"``.

    Example:
        >>> from lightning_kernels import get_compiled_norms, set_compiled_norms
        >>> set_compiled_norms("inductor")
        >>> get_compiled_norms()
        'inductor'
        >>> set_compiled_norms("kernels")
    """
    global _compiled_norms
    check_choice("set_compiled_norms", "norms", norms, CompiledNorms)
    _compiled_norms = norms


def get_compiled_norms() -> CompiledNorms:
    """Return the choice of :func:`set_compiled_norms`.

    Example:
        >>> from lightning_kernels import get_compiled_norms, set_compiled_norms
        >>> set_compiled_norms("inductor")
        >>> get_compiled_norms()
        'inductor'
        >>> set_compiled_norms("kernels")
    """
    return _compiled_norms


def norm_runs_triton(x: Tensor) -> bool:
    """Return whether a norm's kernel computes a call on ``x``: see :func:`set_compiled_norms`."""
    return (
        (x.is_cuda or INTERPRETED)  # the cheapest test first, without a call
        and runs_triton(x)
        and not (_compiled_norms == "inductor" and torch.compiler.is_compiling())
    )


@torch.compiler.assume_constant_result
def _serves_device(device: torch.device) -> bool:
    return _probe_device(device)


@functools.cache  # apart from _serves_device, because Dynamo warns if it traces a cached function
def _probe_device(device: torch.device) -> bool:
    """Return whether this process can run kernels on ``device``."""
    if not HAS_TRITON:
        return False
    if device.type == "cuda" and not INTERPRETED and torch.version.hip is None:
        if not torch.cuda.is_available():  # fake tensors can have a device that is not there
            return False
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and INTERPRETED


def is_transformed() -> bool:
    """Return whether forward-mode AD, a ``torch.func`` transform or ``torch.jit.trace`` is active.

    They need torch's own operators: torch has no forward-mode or batching rules for the kernels,
    and a trace records no launches.
    """
    if forward_ad._current_level >= 0:
        return True
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def is_traced(x: Tensor) -> bool:
    """Return whether a call on ``x`` must go through ``torch.ops``, so that a tracer can record it.

    That is so under ``torch.compile``, in a dispatch mode, and for fake and other subclass tensors.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or type(x) not in _PLAIN_TYPES
    )
