"""Gradient clipping by norm and by value, in one or two launches for any number of parameters."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from reprlib import repr  # of a few hundred characters at most
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_kernels._clip_grad.kernels import _clip_value_kernel
from lightning_kernels._clip_grad.passes import (
    BLOCK,
    aten_clip_by_norm_,
    clip_by_shares_,
    launch_on,
    norm_of,
    programs_for,
    served_table,
    table_shares,
    total_norm,
)
from lightning_kernels._clip_grad.sharded import Group, joint_shares, local_gradients
from lightning_kernels._clip_grad.tensor_table import TensorTable
from lightning_kernels._core.dispatch import runs_triton
from lightning_kernels._core.parameters import not_a_tensor, number_of

NonFinite = Literal["propagate", "error", "skip", "zero"]
"""Action if the norm is nan or infinite, see :func:`~lightning_kernels.clip_grad_norm_`."""

_NON_FINITE = get_args(NonFinite)

# Elements of a gradient from which one pass over it takes less time than two without a call.
_SMALL = 1 << 15


class HeldGradients(NamedTuple):
    """The gradients, or shards of gradients, that this process holds.

    Attributes:
        groups: All gradients, by the device mesh and the mesh axes that shard them.
        present: The gradients that are not empty.
        table: Table of the gradients in ``present``, or ``None`` if kernels do not support all of
            them.
        sharded: Whether a gradient is sharded between processes.
    """

    groups: dict[Group, list[Tensor]]
    present: list[Tensor]
    table: TensorTable | None
    sharded: bool

    def total_norm(self, norm_type: float) -> Tensor | None:
        """Return the norm by torch's functions, or ``None`` if :meth:`shares` must compute it.

        :meth:`shares` computes the norms of sharded gradients, and norms by kernels.
        """
        unusual = norm_type <= 0 or math.isnan(norm_type)
        if self.sharded or not (unusual or self.table is None):
            return None
        return total_norm(self.present, norm_type)

    def shares(self, norm_type: float) -> Tensor:
        """Return partial sums of powers (for norm ``inf``: partial maxima) over all processes."""
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

    The function replaces :func:`torch.nn.utils.clip_grad_norm_`. It takes two launches for any
    number of gradients of float32, bfloat16 and float16 on one device. The device decides whether
    to clip, without a synchronisation with the host. If the norm is at most ``max_norm``, nothing
    is written. Sums are float32, merged in float64 in a fixed order. Gradients that the kernels do
    not support (float64, sparse, not dense, on the CPU or on several devices) are clipped by
    torch's functions. On the CPU they are written only if they are clipped.

    Sharded gradients (``DTensor``: FSDP2, tensor parallelism) are not gathered. Each process sums
    its shards, and one reduction over each mesh computes the norm, which is the same in all
    processes.

    Args:
        parameters: Parameters whose ``grad`` is scaled in place. Parameters without ``grad`` are
            skipped.
        max_norm: Largest norm :math:`C`: a number, or a tensor of one element, which only the
            device reads.
        norm_type: Order of the norm: any positive number, or ``inf``.
        error_if_nonfinite: Whether to raise if the norm is nan or infinite, like
            ``nonfinite="error"``.
        nonfinite: Action if the norm is nan or infinite. ``"propagate"``: scale the gradients by
            the norm, as torch does. ``"error"``: raise before any gradient is changed; the host
            waits for the device. ``"skip"``: leave the gradients as they are. ``"zero"``: set all
            gradients to 0.

    Returns:
        The norm before clipping, a tensor on the device of the gradients: float64 for gradients of
        float64, else float32. Without gradients it is 0.

    Raises:
        RuntimeError: If the norm is nan or infinite with ``"error"``.
        ValueError: If ``nonfinite`` is none of the four actions above. If it is ``"skip"`` or
            ``"zero"`` together with ``error_if_nonfinite``.

    Example:
        >>> from lightning_kernels import clip_grad_norm_
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([0.9, 100.0])
        >>> norm = clip_grad_norm_([weight], max_norm=1.0)
        >>> norm, weight.grad  # the direction is kept
        (tensor(100.0041), tensor([0.0090, 1.0000]))

    References:
        Pascanu, Mikolov and Bengio, 2013, "On the difficulty of training recurrent neural
        networks", arXiv:1211.5063; "Gradient clipping", lectures S0 and S2.
    """
    nonfinite = _resolve_nonfinite(nonfinite, error_if_nonfinite)
    norm_type = number_of("clip_grad_norm_", "norm_type", norm_type)
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
    """Scale all gradients like :func:`clip_grad_norm_`, with a norm that is known already.

    The function replaces :func:`torch.nn.utils.clip_grads_with_norm_`. It takes one launch, which
    writes nothing if the norm is at most ``max_norm``.

    Args:
        parameters: Parameters whose ``grad`` is scaled in place. Parameters without ``grad`` are
            skipped.
        max_norm: Largest norm: a number, or a tensor of one element, which only the device reads.
        total_norm: The norm of all gradients, a tensor of one element.

    Example:
        >>> from lightning_kernels import clip_grads_with_norm_
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grads_with_norm_([weight], max_norm=1.0, total_norm=torch.tensor(5.0))
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    grads = gradients(parameters)
    if not grads:
        return
    held = hold(grads)
    if not isinstance(total_norm, Tensor):
        raise not_a_tensor("clip_grads_with_norm_", "total_norm", total_norm)
    if hasattr(total_norm, "full_tensor"):  # torch returns a DTensor for sharded gradients
        total_norm = total_norm.full_tensor()
    total_norm = total_norm.detach().reshape(1)
    if held.table is None:
        aten_clip_by_norm_(held.present, total_norm[0], max_norm)
        return
    total_norm = total_norm.to(held.table.pieces.device, torch.float32, non_blocking=True)
    # The norm is passed as the only partial maximum of norm inf, so that the kernel uses it as is.
    clip_by_shares_(held.table, total_norm, max_norm, math.inf)


@torch.no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    r"""Clamp each element of all gradients to ``[-clip_value, clip_value]``.

    The function replaces :func:`torch.nn.utils.clip_grad_value_`. It takes one launch for any
    number of gradients of float32, bfloat16 and float16. Blocks of elements that are all in range
    are not written. nan stays nan. Gradients that the kernels do not support are clamped by torch's
    functions: see :func:`clip_grad_norm_`.

    Args:
        parameters: Parameters whose ``grad`` is clamped in place. Parameters without ``grad`` are
            skipped.
        clip_value: Largest absolute value of an element.

    Raises:
        ValueError: If ``clip_value`` is negative or nan.

    Example:
        >>> from lightning_kernels import clip_grad_value_
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([0.9, 100.0])
        >>> clip_grad_value_([weight], clip_value=1.0)
        >>> weight.grad
        tensor([0.9000, 1.0000])

    References:
        "Gradient clipping", lectures S0 and S2.
    """
    clip_value = number_of("clip_grad_value_", "clip_value", clip_value, least=0)
    grads = gradients(parameters)
    if not grads:
        return
    if not runs_triton(grads[0]) and all(type(g) is Tensor for g in grads):
        _aten_clip_by_value_(grads, clip_value)  # without more checks, which take time
        return
    held = hold(grads)
    table = held.table
    if table is None:
        _aten_clip_by_value_(held.present, clip_value)
        return
    launch_on(
        table, _clip_value_kernel, programs_for(table), len(table.pieces), clip_value, **BLOCK
    )
    torch.autograd.graph.increment_version(held.present)


def _aten_clip_by_value_(grads: Sequence[Tensor], clip_value: float) -> None:
    """Clamp gradients by torch's functions, the small ones by two calls for all of them."""
    small = [g for g in grads if g.numel() < _SMALL]
    if small:
        torch._foreach_clamp_min_(small, -clip_value)
        torch._foreach_clamp_max_(small, clip_value)
    if len(small) < len(grads):
        for grad in grads:
            if grad.numel() >= _SMALL:
                grad.clamp_(-clip_value, clip_value)


def gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of ``parameters``, without ``None``, empty gradients and duplicates.

    The public functions that call this function are decorated with ``torch.no_grad``.
    """
    given = listed(parameters, stacklevel=5)
    try:
        grads = [g for p in given if (g := p.grad) is not None and g.numel() > 0]
    except AttributeError:
        raise not_parameters(given) from None
    if len(set(map(id, grads))) < len(grads):
        return [*{id(g): g for g in grads}.values()]
    return grads


def listed(parameters: Tensor | Iterable[Tensor], stacklevel: int) -> Sequence[Tensor]:
    """Return the parameters as a sequence. Warn of an iterator that has none, as torch does.

    It is mostly ``model.parameters()`` that was kept in a variable and has been used up before.
    """
    if isinstance(parameters, Tensor):
        return [parameters]
    if isinstance(parameters, list):
        return parameters
    if isinstance(parameters, str | bytes) or not isinstance(parameters, Iterable):
        raise not_parameters(parameters)
    given = [*parameters]
    if not given and isinstance(parameters, Iterator):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur: pass"
            " model.parameters() itself, which is a new generator at each call, or a list",
            stacklevel=stacklevel,
        )
    return given


def not_parameters(given: object) -> TypeError:
    """Return the error for an argument ``parameters`` that holds something else."""
    return TypeError(
        "gradient clipping expects parameters as a tensor or an iterable of tensors, such as"
        f" model.parameters(), but got {repr(given)}"
    )


def hold(grads: Iterable[Tensor]) -> HeldGradients:
    """Return the gradients or shards of ``grads``, at least one, that this process holds."""
    groups = local_gradients(grads)
    present = [grad for tensors in groups.values() for grad in tensors if grad.numel() > 0]
    table = served_table(present) if present else None
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
    """Return the action for a norm of nan or infinity. Raise if the arguments contradict.

    ``error_if_nonfinite`` is torch's argument for ``"error"``.
    """
    if nonfinite not in _NON_FINITE:
        known = ", ".join(map(repr, _NON_FINITE))
        raise ValueError(f"nonfinite has to be one of {known}, but got {nonfinite!r}")
    if not error_if_nonfinite:
        return nonfinite
    if nonfinite in ("skip", "zero"):
        raise ValueError(f"error_if_nonfinite contradicts nonfinite={nonfinite!r}: pass only one")
    return "error"
