"""Gradient clipping in two launches, whatever the number of parameters, and without waiting."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_kernels._clip_grad.kernels import _clip_value_kernel
from lightning_kernels._clip_grad.passes import (
    BLOCK,
    are_served,
    aten_clip_by_norm_,
    clip_by_shares_,
    launch_on,
    norm_of,
    programs_for,
    table_shares,
    total_norm,
)
from lightning_kernels._clip_grad.sharded import Group, joint_shares, local_gradients
from lightning_kernels._clip_grad.tensor_table import TensorTable, table_of

NonFinite = Literal["propagate", "error", "skip", "zero"]
_NON_FINITE = get_args(NonFinite)


class HeldGradients(NamedTuple):
    """What this process holds of some gradients.

    Attributes:
        groups: All of them, by who has the rest.
        present: Those that are not empty here.
        table: Of these, if one can hold them all.
        sharded: Whether other processes hold parts.
    """

    groups: dict[Group, list[Tensor]]
    present: list[Tensor]
    table: TensorTable | None
    sharded: bool

    def total_norm(self, norm_type: float) -> Tensor | None:
        """Return the norm by torch's functions, ``None`` where shares of powers serve better."""
        unusual = norm_type <= 0 or math.isnan(norm_type)
        if self.sharded or not (unusual or self.table is None):
            return None
        return total_norm(self.present, norm_type)

    def shares(self, norm_type: float) -> Tensor:
        """Return shares of the sum of powers, or of the maximum, those of other processes too."""
        if self.sharded or self.table is None:
            return joint_shares(self.groups, norm_type)
        return table_shares(self.table, norm_type)


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float | Tensor,
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

    Sharded gradients (``DTensor``: FSDP2, tensor parallelism) stay where they are: each process
    sums its own shards, and one reduction over each mesh makes the norm, the same in all.

    Args:
        parameters: Whose ``grad`` is scaled in place; those without one are left out.
        max_norm: Largest norm :math:`C`; a tensor of one element is not read by the host.
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
    norm_type = float(norm_type)
    grads = gradients(parameters)
    if not grads:
        return torch.tensor(0.0)
    held = hold(grads)
    total = held.total_norm(norm_type)
    if total is None:
        shares = held.shares(norm_type)
        if nonfinite == "error":
            _raise_if_nonfinite(norm_of(shares.double(), norm_type), norm_type)
        if held.table is not None:
            return clip_by_shares_(held.table, shares, max_norm, norm_type, nonfinite)
        total = norm_of(shares, norm_type)
    elif nonfinite == "error":
        _raise_if_nonfinite(total, norm_type)
    aten_clip_by_norm_(held.present, total, max_norm, nonfinite)
    return total


@torch.no_grad()
def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float | Tensor, total_norm: Tensor
) -> None:
    """Scale all gradients as :func:`clip_grad_norm_` does, by a norm that is known already.

    As :func:`torch.nn.utils.clip_grads_with_norm_`, in one launch that writes nothing if nothing
    is clipped.

    Args:
        parameters: Whose ``grad`` is scaled in place; those without one are left out.
        max_norm: Largest norm; a tensor of one element is not read by the host.
        total_norm: The norm of all gradients, one element.
    """
    grads = gradients(parameters)
    if not grads:
        return
    held = hold(grads)
    if hasattr(total_norm, "full_tensor"):  # of sharded gradients, as torch returns it
        total_norm = total_norm.full_tensor()
    total_norm = total_norm.detach().reshape(1)
    if held.table is None:
        aten_clip_by_norm_(held.present, total_norm[0], max_norm)
        return
    total_norm = total_norm.to(held.table.pieces.device, torch.float32, non_blocking=True)
    clip_by_shares_(held.table, total_norm, max_norm, math.inf)  # a maximum of one


@torch.no_grad()
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
    held = hold(grads)
    table = held.table
    if table is None:
        for grad in held.present:
            grad.clamp_(-clip_value, clip_value)
        return
    launch_on(
        table, _clip_value_kernel, programs_for(table), len(table.pieces), clip_value, **BLOCK
    )
    torch.autograd.graph.increment_version(held.present)


def gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients that there are and that have elements, each once."""
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    grads = (p.grad for p in parameters)
    return [*{id(g): g for g in grads if g is not None and g.numel() > 0}.values()]


def hold(grads: Iterable[Tensor]) -> HeldGradients:
    """Return what this process holds of gradients, of which there is one at least."""
    groups = local_gradients(grads)
    present = [grad for tensors in groups.values() for grad in tensors if grad.numel() > 0]
    table = table_of(present) if present and are_served(present) else None
    return HeldGradients(groups, present, table, any(axes for _, axes in groups))


def _raise_if_nonfinite(total: Tensor, norm_type: float) -> None:
    """Wait for the norm, and raise torch's error if it is nan or infinite."""
    if not math.isfinite(value := total.item()):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite"
            f" ({value}), so it cannot be clipped. To disable this error and scale the gradients"
            " by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )


def _resolve_nonfinite(nonfinite: NonFinite, error_if_nonfinite: bool) -> NonFinite:
    if nonfinite not in _NON_FINITE:
        known = ", ".join(map(repr, _NON_FINITE))
        raise ValueError(f"nonfinite has to be one of {known}, but got {nonfinite!r}")
    if not error_if_nonfinite:
        return nonfinite
    if nonfinite in ("skip", "zero"):
        raise ValueError(f"error_if_nonfinite contradicts nonfinite={nonfinite!r}: give one")
    return "error"
