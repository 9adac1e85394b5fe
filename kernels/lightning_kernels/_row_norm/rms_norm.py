"""Root mean square layer normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import norm_runs_triton, without_autocast
from lightning_kernels._core.parameters import check_parameter, check_rows, shape_of
from lightning_kernels._row_norm.layer_norm import Autocast, autocast_dtype
from lightning_kernels._row_norm.operator import row_norm


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    autocast: Autocast = "input",
) -> Tensor:
    r"""Divide the last dimensions of ``input`` by their root mean square, in one pass.

    .. math:: y = x / \sqrt{\overline{x^2} + \epsilon} \cdot \gamma

    The arguments are those of :func:`torch.nn.functional.rms_norm`. What is said of
    :func:`lightning_kernels.layer_norm` holds here: float32 inside, sums in a fixed order, rows of
    any length and of views such as the heads of queries and keys without a copy, the result's type
    under autocast. One number per row is kept beside the inputs.

    Args:
        input: ``(*, *normalized_shape)``, floating point.
        normalized_shape: The last dimensions of ``input``, at least one.
        weight: Scale of shape ``normalized_shape``, in ``input``'s type or float32.
        eps: Added to the mean square. Default: the machine epsilon of float32, for float64 its own.
        autocast: See :func:`lightning_kernels.layer_norm`.

    Returns:
        Contiguous tensor with the shape and dtype of ``input``, see ``autocast``.

    Raises:
        NotImplementedError: If ``input`` is not floating point.
        RuntimeError: If shapes, dtypes or devices do not go together.
        ValueError: If ``autocast`` is neither of its values.

    References:
        Zhang and Sennrich, 2019, "Root mean square layer normalization", arXiv:1910.07467.
    """
    if not input.is_floating_point():
        raise NotImplementedError(f"rms_norm expects a floating-point input, but got {input.dtype}")
    shape = shape_of(normalized_shape)
    dtype = autocast_dtype("rms_norm", input, autocast)
    if not norm_runs_triton(input):
        return _aten_rms_norm(input, shape, weight, eps, dtype)
    _check(input, shape, weight)
    if eps is None:
        eps = torch.finfo(torch.float32).eps
    return row_norm(input, math.prod(shape), weight, None, eps, False, dtype)[0]


def _aten_rms_norm(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, eps: float | None,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """Call torch's function, and return ``dtype``, else the input's."""
    if weight is not None and (weight.dtype != input.dtype or dtype is not None):
        _check(input, shape, weight)
        weight = weight.to(dtype or input.dtype)  # of another ATen takes its slow path, and warns
    if dtype is not None:
        input = input.to(dtype)
    try:
        return without_autocast(torch.nn.functional.rms_norm, input, shape, weight, eps)
    except RuntimeError:
        _check(input, shape, weight)  # clearer, where it knows what is wrong
        raise


def _check(input: Tensor, shape: tuple[int, ...], weight: Tensor | None) -> None:
    check_rows("rms_norm", input, shape)
    check_parameter("rms_norm", "weight", weight, shape, "normalized_shape", input)
