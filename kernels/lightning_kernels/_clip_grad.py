"""Gradient clipping in two launches, whatever the number of parameters, and without waiting."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_kernels._clip_grad_aten import aten_clip_grad_norm_
from lightning_kernels._clip_grad_kernels import _clip_norm_kernel, _clip_value_kernel, _norm_kernel
from lightning_kernels._dispatch import (
    is_dense,
    launch,
    multiprocessor_count,
    next_power_of_2,
    runs_triton,
)
from lightning_kernels._tensor_table import TensorTable, table_of, widened

NonFinite = Literal["propagate", "error", "skip", "zero"]

_BLOCK = {"BLOCK_SIZE": 4096, "num_warps": 8}
_PROGRAMS_PER_MULTIPROCESSOR = 6  # of 8 warps: what 40 registers a thread allow
_NORMS = {1.0: "1", 2.0: "2", math.inf: "inf"}


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    nonfinite: NonFinite = "propagate",
) -> Tensor:
    r"""Scale all gradients so that their norm, taken together, is at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min\left(1, \frac{C}{\lVert g \rVert + 10^{-6}}\right)

    As :func:`torch.nn.utils.clip_grad_norm_`, in two launches for any number of gradients and any
    mix of float32, bfloat16 and float16, of one device. The device alone decides whether anything
    is clipped; if not, nothing is written. Sums are float32, merged in float64 in a fixed order.
    Other gradients (float64, sparse, on the CPU or several devices, not dense) go to torch's
    functions, on the CPU without the write where nothing is clipped.

    Args:
        parameters: Whose ``grad`` is scaled in place; those without one are left out.
        max_norm: Largest norm :math:`C`.
        norm_type: Order of the norm: any positive number, or ``inf``.
        error_if_nonfinite: Same as ``nonfinite="error"``.
        nonfinite: What to do if the norm is nan or infinite: ``"propagate"`` it into all
            gradients, as torch does; raise an ``"error"`` before any gradient is touched, which
            waits for the device; ``"skip"`` clipping and leave them as they are; or set all to
            ``"zero"``.

    Returns:
        The norm before clipping, a tensor on the gradients' device: float32, or float64 for such
        gradients. 0 without gradients.

    Raises:
        RuntimeError: With ``"error"``, if the norm is nan or infinite.
        ValueError: If ``nonfinite`` is none of these, or contradicts ``error_if_nonfinite``.

    References:
        Pascanu, Mikolov and Bengio, 2013, "On the difficulty of training recurrent neural
        networks", arXiv:1211.5063.
    """
    nonfinite = _resolve_nonfinite(nonfinite, error_if_nonfinite)
    grads = gradients(parameters)
    norm_type = float(norm_type)
    if not grads:
        return torch.tensor(0.0)
    if norm_type <= 0 or math.isnan(norm_type) or not _are_served(grads):
        return aten_clip_grad_norm_(grads, float(max_norm), norm_type, nonfinite)
    table = table_of(grads)
    device = grads[0].device
    constants: dict[str, Any] = {"NORM": _NORMS.get(norm_type, "p"), **_BLOCK}
    programs = _programs(table)
    partial = torch.empty(programs, device=device)
    launch_on(table, _norm_kernel, programs, partial, len(table.pieces), norm_type, **constants)
    constants["PARTIALS"] = next_power_of_2(programs)
    total = torch.empty((), device=device)
    if nonfinite == "error":
        launch_on(
            table, _clip_norm_kernel, 1, partial, total, 0, programs, 1.0, norm_type,
            NONFINITE=nonfinite, **constants,
        )  # fmt: skip
        raise_if_nonfinite(total, norm_type)
    launch_on(
        table, _clip_norm_kernel, programs, partial, total, len(table.pieces), programs,
        float(max_norm), norm_type, NONFINITE=nonfinite, **constants,
    )  # fmt: skip
    torch.autograd.graph.increment_version(grads)
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    r"""Clamp each element of all gradients to ``[-clip_value, clip_value]``.

    As :func:`torch.nn.utils.clip_grad_value_`, in one launch for any number of gradients and any
    mix of float32, bfloat16 and float16; blocks in which nothing is out of range are not written.
    nan stays nan. What is not served goes to torch, see :func:`clip_grad_norm_`.

    Args:
        parameters: Whose ``grad`` is clamped in place; those without one are left out.
        clip_value: Largest absolute value.

    Raises:
        ValueError: If ``clip_value`` is negative or nan.
    """
    clip_value = float(clip_value)
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_ expects clip_value of 0 or more, but got {clip_value}")
    grads = gradients(parameters)
    if not grads:
        return
    if not _are_served(grads):
        for grad in grads:
            grad.clamp_(-clip_value, clip_value)
        return
    table = table_of(grads)
    launch_on(table, _clip_value_kernel, _programs(table), len(table.pieces), clip_value, **_BLOCK)
    torch.autograd.graph.increment_version(grads)


def gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients that there are and that have elements, each once."""
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    grads = (p.grad for p in parameters)
    return [*{id(g): g for g in grads if g is not None and g.numel() > 0}.values()]


def raise_if_nonfinite(total: Tensor, norm_type: float) -> None:
    """Wait for the norm, and raise torch's error if it is nan or infinite."""
    if not math.isfinite(value := total.item()):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite"
            f" ({value}), so it cannot be clipped. To disable this error and scale the gradients"
            " by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )


def _resolve_nonfinite(nonfinite: NonFinite, error_if_nonfinite: bool) -> NonFinite:
    if nonfinite not in get_args(NonFinite):
        known = ", ".join(map(repr, get_args(NonFinite)))
        raise ValueError(f"nonfinite has to be one of {known}, but got {nonfinite!r}")
    if not error_if_nonfinite:
        return nonfinite
    if nonfinite in ("skip", "zero"):
        raise ValueError(f"error_if_nonfinite contradicts nonfinite={nonfinite!r}: give one")
    return "error"


def _are_served(grads: Sequence[Tensor]) -> bool:
    """Return whether one table can hold all gradients."""
    kinds = {(g.device, g.dtype, g.layout, type(g)) for g in grads}
    if len({device for device, *_ in kinds}) > 1:
        return False
    examples = {(g.dtype, type(g)): g for g in grads}.values()
    return (
        all(layout is torch.strided for *_, layout, _ in kinds)
        and all(runs_triton(g) for g in examples)
        and all(is_dense(g) for g in grads)
    )


def _programs(table: TensorTable) -> int:
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
