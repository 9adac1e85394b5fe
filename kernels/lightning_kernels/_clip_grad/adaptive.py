"""Adaptive gradient clipping: limits each unit's gradient relative to its weights, in one launch.

A unit is a row of the first dimension of a parameter, or a whole parameter of fewer than two
dimensions.
"""

import contextlib
import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_kernels._clip_grad.aten import MIN_NORM, Pair, aten_clip_adaptive, joint_norms
from lightning_kernels._clip_grad.clip_grad import listed, not_parameters
from lightning_kernels._clip_grad.kernels import add_power, reduce_powers, root
from lightning_kernels._clip_grad.passes import norm_name
from lightning_kernels._clip_grad.sharded import Group, local_gradients
from lightning_kernels._clip_grad.tensor_table import (
    DTYPES,
    address_of,
    kept_on_device,
    widened_tensors,
)
from lightning_kernels._core.dispatch import is_traced, runs_triton
from lightning_kernels._core.launch import launch, multiprocessor_count
from lightning_kernels._core.layout import is_dense
from lightning_kernels._core.parameters import number_of
from lightning_kernels._core.triton import tl, triton

_BLOCK = {"BLOCK_SIZE": 1024, "num_warps": 4}
_PROGRAMS_PER_MULTIPROCESSOR = 12
_COLUMNS = tl.constexpr(5)  # columns of the table that _describe returns
_LEAST = tl.constexpr(MIN_NORM)


@triton.jit
def _clip_unit(
    weight_address, grad_address, size, clip_factor, eps, power,
    DTYPE: tl.constexpr, WIDTH: tl.constexpr, NORM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Scale the gradient of one unit down if its norm exceeds the limit.

    The size and the addresses of a unit allow loads of ``WIDTH`` elements.
    """
    weight_ptr = weight_address.to(tl.pointer_type(DTYPE))
    grad_ptr = grad_address.to(tl.pointer_type(DTYPE))
    if WIDTH > 1:
        weight_ptr = tl.multiple_of(weight_ptr, 16)
        grad_ptr = tl.multiple_of(grad_ptr, 16)
    size = size // WIDTH * WIDTH  # unchanged: shows the compiler that WIDTH divides it
    weights = tl.zeros((BLOCK_SIZE,), tl.float32)
    grads = tl.zeros((BLOCK_SIZE,), tl.float32)
    for start in range(0, size, BLOCK_SIZE):
        index = start + tl.arange(0, BLOCK_SIZE)
        weight = tl.load(weight_ptr + index, mask=index < size, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + index, mask=index < size, other=0.0).to(tl.float32)
        weights = add_power(weights, weight, power, NORM)
        grads = add_power(grads, grad, power, NORM)
    weight_norm = root(reduce_powers(weights, NORM), power, NORM)
    grad_norm = root(reduce_powers(grads, NORM), power, NORM)
    # tl.where keeps nan. tl.maximum would drop it.
    limit = clip_factor * tl.where(weight_norm < eps, eps, weight_norm)
    if (grad_norm <= limit) == 0:
        factor = limit / tl.where(grad_norm < _LEAST, _LEAST, grad_norm)
        for start in range(0, size, BLOCK_SIZE):
            index = start + tl.arange(0, BLOCK_SIZE)
            grad = tl.load(grad_ptr + index, mask=index < size).to(tl.float32)
            grad = (grad * factor).to(grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + index, grad, mask=index < size)


@triton.jit
def _clip_adaptive_kernel(
    table_ptr, owner_ptr, units, clip_factor, eps, power,
    NORM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Clip all units. Each program clips one unit after the other.

    ``owner_ptr`` holds for each unit the row of its parameter in the table of :func:`_describe`.
    """
    for unit in range(tl.program_id(0), units, tl.num_programs(0)):
        row_ptr = table_ptr + tl.load(owner_ptr + unit) * _COLUMNS
        size = tl.load(row_ptr + 2)
        code = tl.load(row_ptr + 4)
        skipped = (unit - tl.load(row_ptr + 3)) * size * tl.where(code % 3 == 0, 4, 2)
        weight = tl.load(row_ptr) + skipped
        grad = tl.load(row_ptr + 1) + skipped
        if code == 0:
            _clip_unit(weight, grad, size, clip_factor, eps, power, tl.float32, 4, NORM, BLOCK_SIZE)
        elif code == 1:
            _clip_unit(
                weight, grad, size, clip_factor, eps, power, tl.bfloat16, 8, NORM, BLOCK_SIZE
            )
        elif code == 2:
            _clip_unit(weight, grad, size, clip_factor, eps, power, tl.float16, 8, NORM, BLOCK_SIZE)
        elif code == 3:
            _clip_unit(weight, grad, size, clip_factor, eps, power, tl.float32, 1, NORM, BLOCK_SIZE)
        elif code == 4:
            _clip_unit(
                weight, grad, size, clip_factor, eps, power, tl.bfloat16, 1, NORM, BLOCK_SIZE
            )
        else:
            _clip_unit(weight, grad, size, clip_factor, eps, power, tl.float16, 1, NORM, BLOCK_SIZE)


@torch.no_grad()
def clip_grad_adaptive_(
    parameters: Tensor | Iterable[Tensor],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    norm_type: float = 2.0,
    *,
    exclude: Iterable[Tensor] = (),
) -> None:
    r"""Limit the norm of each unit's gradient to ``clip_factor`` times the norm of its weights.

    .. math::
        g_u \leftarrow g_u \cdot \lambda \frac{\max(\lVert w_u \rVert, \epsilon)}{\lVert g_u \rVert}
        \quad \text{if} \quad
        \lVert g_u \rVert > \lambda \max(\lVert w_u \rVert, \epsilon)

    A unit :math:`u` is a row of the first dimension of a parameter, which is one output of a linear
    or convolutional layer, or a whole parameter of fewer than two dimensions. One launch clips any
    number of gradients of float32, bfloat16 and float16. Norms are float32. Units within the limit
    are not written. Gradients that the kernel does not support (for example float64, or on the CPU)
    are clipped by torch's functions. For a sharded parameter (``DTensor``) each process clips the
    rows that it holds. If rows are split between processes, one reduction over each mesh computes
    their norms.

    Args:
        parameters: Parameters whose ``grad`` is clipped in place. Parameters without ``grad`` are
            skipped.
        clip_factor: Largest ratio :math:`\lambda` of the norm of the gradient to the norm of the
            weights.
        eps: Lower bound :math:`\epsilon` of the norm of the weights, so that weights of 0 can
            change.
        norm_type: Order of the norm: any positive number, or ``inf``.
        exclude: Parameters to skip. The paper skips the last linear layer.

    Raises:
        ValueError: If ``clip_factor`` or ``eps`` is negative or nan, or ``norm_type`` is not
            positive.

    Example:
        >>> from lightning_kernels import clip_grad_adaptive_
        >>> weight = nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))  # two units of norm 5
        >>> weight.grad = torch.tensor([[0.3, 0.4], [0.003, 0.004]])  # of norms 0.5 and 0.005
        >>> clip_grad_adaptive_([weight], clip_factor=0.01)
        >>> weight.grad.norm(dim=1)
        tensor([0.0500, 0.0050])

    References:
        Brock et al., 2021, "High-performance large-scale image recognition without
        normalization", arXiv:2102.06171.
    """
    function = "clip_grad_adaptive_"
    clip_factor = number_of(function, "clip_factor", clip_factor, least=0)
    eps = number_of(function, "eps", eps, least=0)
    norm_type = number_of(function, "norm_type", norm_type)
    if not norm_type > 0:
        raise ValueError(f"{function} expects a positive norm_type, but got {norm_type}")
    if not isinstance(exclude, Iterable) or isinstance(exclude, str | bytes):
        raise TypeError(
            f"{function} expects exclude as an iterable of parameters, but got {exclude!r}"
        )
    excluded = {id(p) for p in exclude}
    given = listed(parameters, stacklevel=4)
    try:
        clipped = [
            (p, grad)
            for p in {id(p): p for p in given}.values()
            if id(p) not in excluded and (grad := p.grad) is not None and grad.numel() > 0
        ]
    except AttributeError:
        raise not_parameters(given) from None
    whole, split = _by_units(clipped)
    served: dict[torch.device, list[Pair]] = {}
    others: dict[torch.device, list[Pair]] = {}
    for pair in whole:
        (served if _is_served(*pair) else others).setdefault(pair[1].device, []).append(pair)
    for pairs in served.values():
        _clip(pairs, clip_factor, eps, norm_type)
    for pairs in others.values():
        aten_clip_adaptive(pairs, clip_factor, eps, norm_type)
    for (mesh, axes), pairs in split.items():
        join = functools.partial(joint_norms, mesh=mesh, axes=axes, norm_type=norm_type)
        aten_clip_adaptive(pairs, clip_factor, eps, norm_type, join)


def _by_units(pairs: Iterable[Pair]) -> tuple[list[Pair], dict[Group, list[Pair]]]:
    """Sort the pairs of weight and gradient that this process holds by how their units are sharded.

    Returns:
        The pairs whose units are whole in this process: parameters that are not sharded, or sharded
        by rows. The pairs whose units are split between processes, by device mesh and mesh axes.
    """
    whole: list[Pair] = []
    split: dict[Group, list[Pair]] = {}
    for p, grad in pairs:
        if type(grad) is Tensor or not hasattr(grad, "placements"):  # the cheaper test first
            whole.append((p, grad))
            continue
        ((mesh, _), (local,)), *_ = local_gradients([grad]).items()
        pair = p.detach().to_local(), local  # type: ignore[attr-defined]
        axes = tuple(
            axis
            for axis, place in enumerate(grad.placements)
            if place.is_shard() and (p.dim() < 2 or place.dim != 0)
        )
        if axes:
            split.setdefault((mesh, axes), []).append(pair)
        elif local.numel() > 0:
            whole.append(pair)
    return whole, split


def _is_served(weight: Tensor, grad: Tensor) -> bool:
    """Return whether the kernel can clip ``grad``."""
    return (
        runs_triton(weight)
        and runs_triton(grad)
        and weight.dtype == grad.dtype
        and not is_traced(grad)
        and all(_rows_are_dense(t) for t in (weight, grad))
    )


def _rows_are_dense(t: Tensor) -> bool:
    """Return whether ``t`` is dense, and its rows of the first dimension follow each other."""
    return is_dense(t) and (
        t.dim() < 2 or t.shape[0] == 1 or t.stride(0) == t.numel() // t.shape[0]
    )


def _clip(pairs: Sequence[Pair], clip_factor: float, eps: float, norm_type: float) -> None:
    """Clip the gradients of ``pairs``, which are on one device, in one launch."""
    weights, grads = zip(*pairs, strict=True)
    tensors = [*weights, *grads]
    device = weights[0].device
    units = sum(map(_units, weights))
    programs = min(units, _PROGRAMS_PER_MULTIPROCESSOR * multiprocessor_count(device))
    on_cpu = device.type == "cpu"  # where the interpreter rounds bfloat16 wrongly
    with widened_tensors(tensors) if on_cpu else contextlib.nullcontext(tensors) as read:
        launch(
            _clip_adaptive_kernel, (programs,), device, kept_on_device(read, _describe),
            kept_on_device(read, _owners), units, clip_factor, eps, norm_type,
            NORM=norm_name(norm_type), **_BLOCK,
        )  # fmt: skip
    torch.autograd.graph.increment_version(grads)


def _units(p: Tensor) -> int:
    """Return the number of units of a parameter."""
    return p.shape[0] if p.dim() > 1 else 1


def _describe(tensors: Sequence[Tensor]) -> Tensor:
    """Return the table of parameters that the kernel reads, one row per parameter.

    The columns are: address of the parameter; address of its gradient; number of elements of a
    unit; index of its first unit among all units; code of the dtype, plus 3 if some unit is not
    aligned to 16 bytes, which wide loads need.

    Args:
        tensors: The parameters, followed by their gradients in the same order.
    """
    rows = []
    first = 0
    half = len(tensors) // 2
    for p, grad in zip(tensors[:half], tensors[half:], strict=True):
        size = p.numel() // _units(p)
        places = address_of(p) | address_of(grad) | size * p.element_size()
        code = DTYPES.index(p.dtype) + (3 if places % 16 else 0)
        rows.append([address_of(p), address_of(grad), size, first, code])
        first += _units(p)
    return torch.tensor(rows, dtype=torch.int64)


def _owners(tensors: Sequence[Tensor]) -> Tensor:
    """Return for each unit the index of its parameter.

    Args:
        tensors: The parameters, followed by their gradients.
    """
    weights = tensors[: len(tensors) // 2]
    counts = torch.tensor([_units(p) for p in weights])
    return torch.arange(len(weights), dtype=torch.int32).repeat_interleave(counts)
