"""The two passes of clipping by norm, by kernels or torch's functions: sum powers, then scale.

The first pass stores "shares": one partial sum of powers per program. For norm ``inf`` a share is a
partial maximum of absolute values. The second pass merges the shares to the norm.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lightning_kernels._clip_grad.kernels import _clip_norm_kernel, _norm_kernel
from lightning_kernels._clip_grad.tensor_table import TensorTable, table_of, widened
from lightning_kernels._core.dispatch import is_traced, runs_triton
from lightning_kernels._core.launch import launch, multiprocessor_count, next_power_of_2
from lightning_kernels._core.layout import is_dense
from lightning_kernels._core.parameters import number_of

BLOCK = {"BLOCK_SIZE": 4096, "num_warps": 8}
# Programs of 8 warps that fit a multiprocessor with 48 registers a thread.
_PROGRAMS_PER_MULTIPROCESSOR = 5
_MAX_REGISTERS = 48  # without it Triton 3.6's ptxas chooses 40 registers for sm_100, and spills
_HALVES = (torch.float16, torch.bfloat16)
_NORMS = {1.0: "1", 2.0: "2", math.inf: "inf"}


def norm_name(norm_type: float) -> str:
    """Return the kernels' constant ``NORM``: ``"1"``, ``"2"``, ``"inf"``, or ``"p"`` otherwise."""
    return _NORMS.get(norm_type, "p")


def served_table(grads: Sequence[Tensor]) -> TensorTable | None:
    """Return the table of gradients, or ``None`` if the kernels don't support all of them.

    The kernels support gradients that are dense, on one device and not float64. They read
    addresses, so fake tensors and calls that are traced are left to torch.
    """
    if not runs_triton(grads[0]):  # the cheapest test first: calls on the CPU must stay cheap
        return None
    examples = {(g.layout, type(g)): g for g in grads}.values()
    if not all(runs_triton(g) and not is_traced(g) for g in examples):
        return None
    return table_of(grads, _are_served)


def _are_served(grads: Sequence[Tensor]) -> bool:
    kinds = {(g.device, g.dtype): g for g in grads}
    if len({device for device, _ in kinds}) > 1:
        return False
    return all(map(runs_triton, kinds.values())) and all(map(is_dense, grads))


def programs_for(table: TensorTable) -> int:
    """Return the number of programs of a launch over ``table``: enough to fill the device."""
    device = table.tensors[0].device
    return min(len(table.pieces), _PROGRAMS_PER_MULTIPROCESSOR * multiprocessor_count(device))


def launch_on(table: TensorTable, kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Launch ``kernel`` over ``table``.

    On the CPU the kernel gets float32 copies of bfloat16 tensors, because the interpreter rounds
    bfloat16 wrongly.
    """
    device = table.tensors[0].device
    if device.type == "cpu":
        with widened(table) as wide:
            launch(kernel, (programs,), device, wide.pieces, *args, **constants)
    else:
        launch(kernel, (programs,), device, table.pieces, *args, **constants)


def power_shares(grads: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the partial sums of powers of ``grads`` (for norm ``inf``: maxima), in one dimension.

    Args:
        grads: Gradients, at least one. None of them is empty.
        norm_type: Order of the norm.
    """
    table = served_table(grads)
    if table is None:
        total = total_norm(grads, norm_type).double()
        return (total if norm_type == math.inf else total**norm_type).reshape(1)
    return table_shares(table, norm_type)


def table_shares(table: TensorTable, norm_type: float) -> Tensor:
    """Return the partial sum of powers (for norm ``inf``: the maximum) of each program."""
    programs = programs_for(table)
    shares = torch.empty(programs, device=table.pieces.device)
    launch_on(
        table, _norm_kernel, programs, shares, len(table.pieces), norm_type,
        NORM=norm_name(norm_type), maxnreg=_MAX_REGISTERS, **BLOCK,
    )  # fmt: skip
    return shares


def norm_of(shares: Tensor, norm_type: float) -> Tensor:
    """Return the norm in the dtype of ``shares``, given partial sums of powers or maxima."""
    if norm_type == math.inf:
        return shares.max()
    return shares.sum() ** (1 / norm_type)


def limit_on(
    device: torch.device, max_norm: float | Tensor, dtype: torch.dtype = torch.float32
) -> tuple[float, Tensor | None]:
    """Return (number, ``None``) if ``max_norm`` is a number, or (0, tensor on ``device``).

    Raises:
        TypeError: If ``max_norm`` is neither a number nor a tensor.
        ValueError: If it is negative or nan, or a tensor of more or less than one element.
    """
    if not isinstance(max_norm, Tensor):
        return number_of("gradient clipping", "max_norm", max_norm, least=0), None
    if max_norm.numel() != 1:
        raise ValueError(
            "max_norm has to be a number or a tensor of one element, but got the shape"
            f" {list(max_norm.shape)}"
        )
    return 0.0, max_norm.detach().reshape(()).to(device, dtype, non_blocking=True)


def clip_by_shares_(
    table: TensorTable,
    shares: Tensor,
    max_norm: float | Tensor,
    norm_type: float,
    nonfinite: str = "propagate",
) -> Tensor:
    """Scale the gradients in ``table``, given partial sums of powers or maxima (``shares``).

    Returns:
        The norm before clipping, float32.
    """
    device = table.pieces.device
    total = torch.empty((), device=device)
    number, tensor = limit_on(device, max_norm)
    launch_on(
        table, _clip_norm_kernel, programs_for(table), shares, total, tensor, len(table.pieces),
        len(shares), number, norm_type, NONFINITE=nonfinite, NORM=norm_name(norm_type),
        PARTIALS=next_power_of_2(len(shares)), **BLOCK,
    )  # fmt: skip
    torch.autograd.graph.increment_version(table.tensors)
    return total


def total_norm(grads: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of all gradients by torch's functions. 16-bit dtypes sum in float32."""
    if any(g.layout is not torch.strided for g in grads):
        return get_total_norm([g.float() if g.dtype in _HALVES else g for g in grads], norm_type)
    # The foreach functions are faster than get_total_norm, which sorts the gradients by device and
    # needs float32 copies of 16-bit gradients.
    halves = [g for g in grads if g.dtype in _HALVES]
    others = [g for g in grads if g.dtype not in _HALVES] if halves else [*grads]
    norms = [*torch._foreach_norm(others, norm_type)] if others else []
    if halves:
        norms += torch._foreach_norm(halves, norm_type, dtype=torch.float32)
    device = grads[0].device
    if device.type != "cpu":  # on the CPU the calls would only cost time
        norms = [norm.to(device) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return total


def aten_clip_by_norm_(
    grads: Sequence[Tensor], total: Tensor, max_norm: float | Tensor, nonfinite: str = "propagate"
) -> None:
    """Scale gradients by torch's functions, given their norm.

    On the CPU nothing is written if the norm is at most ``max_norm``.
    """
    number, limit = limit_on(total.device, max_norm, total.dtype)
    max_norm = number if limit is None else limit
    # On the CPU no synchronisation is needed to read the value. A fake tensor has no value.
    if total.device.type == "cpu" and not is_traced(total):
        value = float(total)
        if max_norm / (value + 1e-6) >= 1 or (nonfinite == "skip" and not math.isfinite(value)):
            return
    if nonfinite in ("zero", "skip"):
        finite = total.isfinite()
        total = torch.where(finite, total, 0.0)
        if nonfinite == "zero":
            for grad in grads:
                grad.masked_fill_(~finite.to(grad.device), 0.0)
    holders = [_Holder(grad) for grad in grads]
    clip_grads_with_norm_(holders, max_norm, total)  # type: ignore[arg-type]


class _Holder:
    """Object with a ``grad``, in place of the parameter that torch's clipping function expects."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
