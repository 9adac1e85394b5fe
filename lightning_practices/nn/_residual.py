"""The end of a residual branch and the norm after it, in one fused call where possible."""

import torch
from torch import Tensor, nn

import lightning_kernels
from lightning_practices.nn._dropout import Dropout
from lightning_practices.nn._hooks import any_hook_on_all, is_touched
from lightning_practices.nn._layer_norm import LayerNorm

_DROPOUTS = frozenset({nn.Dropout, Dropout})
_NORMS = frozenset({nn.LayerNorm, LayerNorm})


def drop_add_norm(
    branch: Tensor, stream: Tensor, dropout: nn.Dropout, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    r"""Drop out a branch, add it to the residual stream and normalise the sum.

    .. math:: z = r + \mathrm{dropout}(x), \qquad y = \mathrm{norm}(z)

    One fused call computes both if dropout and norm are torch's or this package's layers and have
    no hooks. Otherwise, or if dtypes don't match, the layers are called one by one.

    Args:
        branch: Output :math:`x` of the branch.
        stream: Residual stream :math:`r`.
        dropout: Layer that drops elements of the branch.
        norm: Layer that normalises the sum.

    Returns:
        :math:`y` and :math:`z`. A fused call returns :math:`y` in the dtype of the branch.
    """
    if (
        type(dropout) not in _DROPOUTS
        or type(norm) not in _NORMS
        or branch.shape != stream.shape
        or not (
            branch.dtype == stream.dtype or (branch.itemsize, stream.dtype) == (2, torch.float32)
        )
        or "autocast" in norm.__dict__  # only the norm's own forward uses this attribute
        or is_touched(dropout.__dict__)
        or is_touched(norm.__dict__)
        or any_hook_on_all()
    ):
        z = stream + dropout(branch)
        return norm(z), z
    rate = dropout.current_rate() if isinstance(dropout, Dropout) else dropout.p
    return lightning_kernels.add_dropout_layer_norm(
        branch,
        stream,
        norm.normalized_shape,
        norm.weight,
        norm.bias,
        p=rate,
        eps=norm.eps,
        training=dropout.training,
    )


def norm_of_sum(branch: Tensor, stream: Tensor, dropout: nn.Dropout, norm: nn.LayerNorm) -> Tensor:
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
