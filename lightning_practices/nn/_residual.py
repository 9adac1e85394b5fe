"""The end of a residual branch and the norm after it, in one fused call where possible."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lightning_kernels
from lightning_practices.nn._dropout import Dropout
from lightning_practices.nn._fused_layer import LEFT
from lightning_practices.nn._hooks import any_hook_on_all, is_touched
from lightning_practices.nn._layer_norm import LayerNorm
from lightning_practices.nn._rms_norm import RMSNorm

# A function of a norm, a branch, a residual stream and the kernel's other options. It returns norm
# and sum of one fused call, or ``None`` if this norm and these tensors have none.
AddNorm = Callable[..., tuple[Tensor, Tensor] | None]

_DROPOUTS = frozenset({nn.Dropout, Dropout})


def add_layer_norm(
    norm: Any, branch: Tensor, stream: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Return layer norm and sum of a branch and the residual stream, by one fused call."""
    return lightning_kernels.add_dropout_layer_norm(
        branch, stream, norm.normalized_shape, norm.weight, norm.bias, eps=norm.eps, **options
    )


def add_rms_norm(
    norm: Any, branch: Tensor, stream: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Return RMS norm and sum of a branch and the residual stream, by one fused call."""
    return lightning_kernels.add_dropout_rms_norm(
        branch, stream, norm.normalized_shape, norm.weight, eps=norm.eps, **options
    )


# The fused call of each norm class. Subclasses have none, since their forward may be another one.
ADD_NORMS: dict[type[nn.Module], AddNorm] = {
    nn.LayerNorm: add_layer_norm,
    LayerNorm: add_layer_norm,
    nn.RMSNorm: add_rms_norm,
    RMSNorm: add_rms_norm,
}


def drop_add_norm(
    branch: Tensor, stream: Tensor, dropout: nn.Module | None, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    r"""Drop out a branch, add it to the residual stream and normalise the sum.

    .. math:: z = r + \mathrm{dropout}(x), \qquad y = \mathrm{norm}(z)

    One fused call computes both if dropout and norm have known classes and no hooks: torch's or
    this package's dropout, and a norm of :data:`ADD_NORMS`. Otherwise, or if dtypes don't match,
    the layers are called one by one.

    Args:
        branch: Output :math:`x` of the branch.
        stream: Residual stream :math:`r`.
        dropout: Layer that drops elements of the branch. ``None`` drops nothing.
        norm: Layer that normalises the sum.

    Returns:
        :math:`y` and :math:`z`. A fused call returns :math:`y` in the dtype of the branch.
    """
    call = add_norm_call(norm)
    if (
        call is not None
        and (dropout is None or (type(dropout) in _DROPOUTS and not is_touched(dropout.__dict__)))
        and branch.shape == stream.shape
        and (branch.dtype == stream.dtype or _is_cast(branch, stream))
    ):
        drops = {} if dropout is None else {"p": _rate(dropout), "training": dropout.training}
        results = call(norm, branch, stream, **drops)
        if results is not None:
            return results
    z = stream + (branch if dropout is None else dropout(branch))
    return norm(z), z


def _is_cast(branch: Tensor, stream: Tensor) -> bool:
    """Return whether autocast has cast the branch, as it will cast the next one's input."""
    return (
        branch.itemsize == 2
        and stream.dtype == torch.float32
        and torch.is_autocast_enabled(branch.device.type)
    )


def add_norm_call(norm: nn.Module) -> AddNorm | None:
    """Return the function that adds a branch and calls ``norm``, or ``None`` to call ``norm``."""
    call = ADD_NORMS.get(type(norm))
    if (
        call is None
        or LEFT in norm.__dict__  # it was measured to be slower so
        or "autocast" in norm.__dict__  # only the norm's own forward uses this attribute
        or is_touched(norm.__dict__)
        or any_hook_on_all()
    ):
        return None
    return call


def _rate(dropout: nn.Module) -> Any:
    return dropout.current_rate() if isinstance(dropout, Dropout) else dropout.p


def norm_of_sum(
    branch: Tensor, stream: Tensor, dropout: nn.Module | None, norm: nn.Module
) -> Tensor:
    """Return only the norm of :func:`drop_add_norm`, in the dtype of the sum: the next stream."""
    if branch.itemsize < stream.itemsize:  # autocast: keep the precision of the stream
        branch = branch.to(stream.dtype)
    return drop_add_norm(branch, stream, dropout, norm)[0]


def can_fold(layer: nn.Module, base: type[nn.Module], methods: tuple[str, ...], x: Tensor) -> bool:
    """Return whether kernels run for ``x``, and ``layer`` has the ``methods`` of ``base``."""
    if lightning_kernels.route(x) == "aten":
        return False
    own, cls = layer.__dict__, type(layer)
    return not any(name in own or getattr(cls, name) is not getattr(base, name) for name in methods)
