"""The two passes of clipping by norm, on kernels or torch's functions: sum powers, then scale."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lightning_kernels._clip_grad.kernels import _clip_norm_kernel, _norm_kernel
from lightning_kernels._clip_grad.tensor_table import TensorTable, table_of, widened
from lightning_kernels._core.dispatch import (
    is_dense,
    launch,
    multiprocessor_count,
    next_power_of_2,
    runs_triton,
)

BLOCK = {"BLOCK_SIZE": 4096, "num_warps": 8}
_PROGRAMS_PER_MULTIPROCESSOR = 5  # of 8 warps: what 48 registers a thread allow
_MAX_REGISTERS = 48  # left to itself, Triton 3.6's ptxas takes 40 for sm_100, and spills
_HALVES = (torch.float16, torch.bfloat16)
_NORMS = {1.0: "1", 2.0: "2", math.inf: "inf"}


def norm_name(norm_type: float) -> str:
    """Return what kernels call a norm of this order: those of their own, and ``"p"`` for others."""
    return _NORMS.get(norm_type, "p")


def are_served(grads: Sequence[Tensor]) -> bool:
    """Return whether one table can hold all gradients."""
    if not runs_triton(grads[0]):  # the quick answer for the CPU
        return False
    kinds = {(g.device, g.dtype, g.layout, type(g)) for g in grads}
    if len({device for device, *_ in kinds}) > 1:
        return False
    examples = {(g.dtype, type(g)): g for g in grads}.values()
    return (
        all(layout is torch.strided for *_, layout, _ in kinds)
        and all(runs_triton(g) for g in examples)
        and all(is_dense(g) for g in grads)
    )


def programs_for(table: TensorTable) -> int:
    """Return how many programs walk over the table: enough to fill the device, none idle."""
    device = table.tensors[0].device
    return min(len(table.pieces), _PROGRAMS_PER_MULTIPROCESSOR * multiprocessor_count(device))


def launch_on(table: TensorTable, kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Launch over a table; the interpreter, which rounds bfloat16 wrongly, gets a wider one."""
    device = table.tensors[0].device
    if device.type == "cpu":
        with widened(table) as wide:
            launch(kernel, (programs,), device, wide.pieces, *args, **constants)
    else:
        launch(kernel, (programs,), device, table.pieces, *args, **constants)


def power_shares(grads: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return shares of the sum of all elements' powers, or of their maximum, one dimension.

    Args:
        grads: Not empty.
        norm_type: Order of the norm.
    """
    if not are_served(grads):
        total = total_norm(grads, norm_type).double()
        return (total if norm_type == math.inf else total**norm_type).reshape(1)
    return table_shares(table_of(grads), norm_type)


def table_shares(table: TensorTable, norm_type: float) -> Tensor:
    """Return the same of the tensors in a table, by the kernel: a share of each program."""
    programs = programs_for(table)
    shares = torch.empty(programs, device=table.pieces.device)
    launch_on(
        table, _norm_kernel, programs, shares, len(table.pieces), norm_type,
        NORM=norm_name(norm_type), maxnreg=_MAX_REGISTERS, **BLOCK,
    )  # fmt: skip
    return shares


def norm_of(shares: Tensor, norm_type: float) -> Tensor:
    """Return the norm that shares of powers are of, in their type."""
    if norm_type == math.inf:
        return shares.max()
    return shares.sum() ** (1 / norm_type)


def limit_on(
    device: torch.device, max_norm: float | Tensor, dtype: torch.dtype = torch.float32
) -> tuple[float, Tensor | None]:
    """Return the largest norm as a number, or 0 and the tensor that a kernel reads.

    Raises:
        ValueError: If it is a tensor, but not of one element.
    """
    if not isinstance(max_norm, Tensor):
        return float(max_norm), None
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
    """Scale the gradients in a table, whose powers' sum is given in shares.

    Returns:
        The norm, float32.
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
    """Return the norm of all gradients by torch's functions, of 16 bits in float32."""
    if any(g.layout is not torch.strided for g in grads):
        return get_total_norm([g.float() if g.dtype in _HALVES else g for g in grads], norm_type)
    # As torch's function, but that it makes no copies in float32 and doesn't sort by device.
    halves = [g for g in grads if g.dtype in _HALVES]
    others = [g for g in grads if g.dtype not in _HALVES] if halves else [*grads]
    norms = [*torch._foreach_norm(others, norm_type)] if others else []
    if halves:
        norms += torch._foreach_norm(halves, norm_type, dtype=torch.float32)
    device = grads[0].device
    if device.type != "cpu":  # else they are all there: whatever is called here costs
        norms = [norm.to(device) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return total


def aten_clip_by_norm_(
    grads: Sequence[Tensor], total: Tensor, max_norm: float | Tensor, nonfinite: str = "propagate"
) -> None:
    """Scale gradients of a known norm by torch's functions; on the CPU only if it is too large."""
    number, limit = limit_on(total.device, max_norm, total.dtype)
    max_norm = number if limit is None else limit
    if total.device.type == "cpu":  # to look costs nothing
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
    """What torch's function takes for a parameter."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
