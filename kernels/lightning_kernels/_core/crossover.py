"""Sizes from which a kernel is expected to be faster than torch's own operators.

No kernel has been measured on every GPU and in every model. So where nothing was measured, a small
table decides, and all inputs that it does not list go to torch. Shapes for which a measurement has
shown that the kernel is faster (:func:`keep_kernels`) run the kernel, whatever the table says.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_kernels._core.parameters import check_choice
from lightning_kernels._core.triton import INTERPRETED

KernelPolicy = Literal["auto", "always"]
"""Whether kernels run for small inputs too, see :func:`~lightning_kernels.set_kernel_policy`."""

Call = tuple[Any, ...]  # an operation, and the shape, strides and dtype of its input

_policy: KernelPolicy = "auto"
_MIB = 1 << 20


class Crossover(NamedTuple):
    """From which inputs on a kernel is used.

    Attributes:
        least_bytes: Size of the input.
        plane: A plane of a contiguous tensor of channels must be a multiple of this many elements.
        dtypes: Dtypes of the input.
        reason: Why.
    """

    least_bytes: int
    reason: str
    plane: int = 1
    dtypes: frozenset[torch.dtype] = frozenset({torch.float32, torch.float16, torch.bfloat16})


_HOST = (
    "the host takes about three times as long for a call as torch's C++; on a GPU of 4 TB/s that is"
    " hidden from a few MiB on"
)
_ROWS = Crossover(4 * _MIB, _HOST)
_PLANES = Crossover(
    4 * _MIB, f"{_HOST}; planes of other sizes need an access for each element", plane=4
)

# The table for GPUs. No GPU has confirmed it: its numbers follow from the kernels' machine code
# (``python -m benchmarks static``) and from host times.
TABLE: dict[str, Crossover] = {
    "layer_norm": _ROWS,
    "rms_norm": _ROWS,
    "add_norm": _ROWS,
    "batch_norm": Crossover(
        4 * _MIB,
        f"{_HOST}; planes of other sizes need accesses of 2 or 4 bytes; for float16 torch calls"
        " cuDNN, whose kernels are fused too",
        plane=8,
        dtypes=frozenset({torch.float32, torch.bfloat16}),
    ),
    "group_norm": _PLANES,
    "instance_norm": _PLANES,
    "dropout": _ROWS,
    "channel_dropout": _ROWS,
    "dropout_activation": _ROWS,
    "stochastic_depth": _ROWS,
    "drop_block": Crossover(0, "torchvision launches ten kernels, which read and write all data"),
}

_kept: set[Call] = set()
_noted: ContextVar[set[Call] | None] = ContextVar("noted", default=None)


def set_kernel_policy(policy: KernelPolicy) -> None:
    """Choose whether kernels run for small inputs too, for the whole process.

    On small inputs torch's own operators are faster than a kernel, because the host takes longer to
    launch a kernel than the GPU takes to run it. :func:`lightning_practices.surgery.fuse` measures
    each layer if it gets a batch. Where nothing was measured, a table decides, which is careful:
    with ``"auto"``, inputs of less than 4 MiB, batch norms of float16 or of planes whose size is no
    multiple of 8, and group norms of planes whose size is no multiple of 4, are computed by torch.

    Args:
        policy: ``"auto"`` (the default): measurements decide, or else the table. ``"always"``:
            kernels compute all inputs that they can. Use it to profile a kernel, and where the
            host's time does not count, such as in a CUDA graph.

    Raises:
        ValueError: If ``policy`` is neither ``"auto"`` nor ``"always"``.

    Example:
        >>> from lightning_kernels import get_kernel_policy, set_kernel_policy
        >>> set_kernel_policy("always")
        >>> get_kernel_policy()
        'always'
        >>> set_kernel_policy("auto")
    """
    global _policy
    check_choice("set_kernel_policy", "policy", policy, KernelPolicy)
    _policy = policy


def get_kernel_policy() -> KernelPolicy:
    """Return the choice of :func:`set_kernel_policy`.

    Example:
        >>> from lightning_kernels import get_kernel_policy, set_kernel_policy
        >>> set_kernel_policy("always")
        >>> get_kernel_policy()
        'always'
        >>> set_kernel_policy("auto")
    """
    return _policy


def pays(operation: str, x: Tensor, *folded: Any) -> bool:
    """Return whether a kernel that can compute a call on ``x`` is expected to be faster than torch.

    Args:
        operation: Key of :data:`TABLE`.
        x: Input of the call.
        *folded: What the call computes besides the operation, such as the name of an activation.
    """
    if INTERPRETED or _policy == "always":  # interpreted kernels are for tests alone
        return True
    return in_table(operation, x) or _was_faster(operation, x, folded)


def in_table(operation: str, x: Tensor) -> bool:
    """Return whether the table names ``x`` as an input for which the kernel is faster."""
    crossover = TABLE[operation]
    if x.numel() * x.element_size() < crossover.least_bytes or x.dtype not in crossover.dtypes:
        return False
    if crossover.plane == 1 or x.dim() < 3 or x.stride(1) == 1:
        return True
    return bool(x.shape[2:].numel() % crossover.plane == 0)


def _was_faster(operation: str, x: Tensor, folded: tuple[Any, ...]) -> bool:
    if torch.compiler.is_compiling():  # measurements are of eager calls
        return False
    noted = _noted.get()
    if not _kept and noted is None:
        return False
    call = (operation, *folded, x.device, x.dtype, x.shape, x.stride())
    if noted is not None:
        noted.add(call)
        return True
    return call in _kept


@contextlib.contextmanager
def run_all_kernels() -> Iterator[set[Call]]:
    """Run kernels for all inputs, and collect the calls for which the table names torch.

    It concerns the current thread, or the current task, alone, and no compiled functions.

    Yields:
        The calls on these inputs, for :func:`keep_kernels`.

    Example:
        >>> from lightning_kernels import layer_norm, run_all_kernels
        >>> with run_all_kernels() as calls:
        ...     y = layer_norm(torch.randn(2, 8), (8,))  # by the kernel, if the tensor is on a GPU
        >>> calls  # empty: this tensor is on the CPU
        set()
    """
    calls: set[Call] = set()
    token = _noted.set(calls)
    try:
        yield calls
    finally:
        _noted.reset(token)


def keep_kernels(calls: set[Call]) -> None:
    """Run the kernel for these calls from now on, because it was measured to be faster.

    Args:
        calls: Calls that :func:`run_all_kernels` has collected. A call stands for all calls with
            the same operation, shape, memory layout, dtype and device.

    Raises:
        TypeError: If ``calls`` is no set.

    Example:
        >>> from lightning_kernels import keep_kernels, layer_norm, run_all_kernels
        >>> with run_all_kernels() as calls:
        ...     y = layer_norm(torch.randn(2, 8), (8,))
        >>> keep_kernels(calls)
        >>> calls  # empty: on the CPU no kernel runs
        set()
    """
    if not isinstance(calls, set):
        raise TypeError(
            f"keep_kernels expects calls as the set that run_all_kernels yields, but got {calls!r}"
        )
    _kept.update(calls)
