"""Root mean square layer normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_kernels._core.autocast import Autocast, autocast_dtype, note_dtype, without_autocast
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import norm_runs_triton
from lightning_kernels._core.parameters import check_eps, check_rows, check_tensor, shape_of
from lightning_kernels._row_norm.operator import row_norm_operator


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

    The positional arguments are those of :func:`torch.nn.functional.rms_norm`. As in
    :func:`lightning_kernels.layer_norm`, the computation is float32, sums have a fixed order, and
    rows of a view, such as the heads of queries and keys, are not copied. The graph keeps the
    inputs and one number per row.

    Args:
        input: Input of shape ``(*, *normalized_shape)``, floating point or complex.
        normalized_shape: Sizes of the last dimensions of ``input``, at least one, which form a row.
        weight: Scale :math:`\gamma` of shape ``normalized_shape``, in the dtype of ``input`` or
            float32.
        eps: Number :math:`\epsilon` that is added to the mean square. ``None`` is the machine
            epsilon of float32, or of float64 for an input of float64.
        autocast: Choice of the result's dtype under autocast: see
            :func:`lightning_kernels.layer_norm`.

    Returns:
        Contiguous tensor of the shape of ``input``. It has the dtype of ``input``, but under
        autocast see ``autocast``.

    Raises:
        NotImplementedError: If ``input`` is neither floating point nor complex. It is torch's own
            error, on some devices another ``RuntimeError``.
        RuntimeError: If the shape, dtype or device of an argument does not fit ``input``.
        TypeError: If an argument is not a tensor, or ``normalized_shape`` is a number, not a
            sequence.
        ValueError: If ``autocast`` is neither ``"input"`` nor ``"match"``.

    Example:
        >>> from lightning_kernels import rms_norm
        >>> rms_norm(torch.tensor([3.0, 4.0]), (2,)) * 12.5**0.5  # the mean square is 12.5
        tensor([3., 4.])

    References:
        Zhang and Sennrich, 2019, "Root mean square layer normalization", arXiv:1910.07467.
    """
    check_tensor("rms_norm", input)
    shape = shape_of(normalized_shape)
    if eps is not None:
        check_eps("rms_norm", eps)
    dtype = None if autocast == "input" else autocast_dtype("rms_norm", input, autocast)
    if not (norm_runs_triton(input) and pays("rms_norm", input)):
        return _aten_rms_norm(input, shape, weight, eps, dtype)
    check_rows("rms_norm", input, shape, weight=weight)
    if eps is None:
        eps = torch.finfo(torch.float32).eps
    return row_norm_operator(input, math.prod(shape), weight, None, eps, False, dtype)[0]


def _aten_rms_norm(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, eps: float | None,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """Call torch's function. The result has ``dtype``; ``None`` is the dtype of ``input``."""
    if weight is not None and (
        dtype is not None or getattr(weight, "dtype", None) is not input.dtype
    ):
        check_rows("rms_norm", input, shape, weight=weight)
        # ATen is slow, and warns, if input and weight have different dtypes.
        weight = weight.to(dtype or input.dtype)
    if dtype is not None:
        input = input.to(dtype)
    try:
        if not input.is_cpu:
            return without_autocast(torch.rms_norm, input, shape, weight, eps)
        return torch.rms_norm(input, shape, weight, eps)
    except RuntimeError as error:
        # If an argument does not fit, this error is clearer than torch's.
        check_rows("rms_norm", input, shape, weight=weight)
        if input.is_cpu:
            note_dtype(error, input)
        raise
