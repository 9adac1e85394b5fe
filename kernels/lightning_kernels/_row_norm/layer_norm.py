"""Layer normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_kernels._core.autocast import Autocast, autocast_dtype, note_dtype, without_autocast
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import norm_runs_triton
from lightning_kernels._core.parameters import check_eps, check_rows, check_tensor, shape_of
from lightning_kernels._row_norm.operator import row_norm_operator


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    autocast: Autocast = "input",
) -> Tensor:
    r"""Normalise the last dimensions of ``input`` to mean 0 and variance 1, in one pass.

    .. math:: y = (x - \bar x) / \sqrt{s^2 + \epsilon} \cdot \gamma + \beta

    :math:`\bar x` and :math:`s^2` are the mean and the biased variance of each row, computed in
    float32. The positional arguments are those of :func:`torch.nn.functional.layer_norm`.

    The graph keeps the inputs and two numbers per row. The backward pass reads ``input`` and the
    gradient of the output once. It reads rows of more than 8192 elements a second time, from the
    cache, and a third time for the gradients of the parameters. These gradients are summed in
    float32 in a fixed order: a second run on the same device is bitwise equal. Rows of a view, such
    as the heads of a larger projection, are not copied. Where the kernels do not run (see
    :func:`lightning_kernels.route`), the function calls torch's.

    Args:
        input: Input of shape ``(*, *normalized_shape)``, floating point.
        normalized_shape: Sizes of the last dimensions of ``input``, at least one, which form a row.
        weight: Scale :math:`\gamma` of shape ``normalized_shape``, in the dtype of ``input`` or
            float32.
        bias: Shift :math:`\beta`, like ``weight``.
        eps: Number :math:`\epsilon` that is added to the variance.
        autocast: Choice of the result's dtype under autocast. ``"input"``: the dtype of ``input``,
            which for 16 bits takes half of the memory of float32. ``"match"``: float32 on a GPU, as
            in torch. The computation is float32 in both cases.

    Returns:
        Contiguous tensor of the shape of ``input``. It has the dtype of ``input``, but under
        autocast see ``autocast``.

    Raises:
        NotImplementedError: If ``input`` is not floating point. It is torch's own error, on some
            devices another ``RuntimeError``.
        RuntimeError: If the shape, dtype or device of an argument does not fit ``input``.
        TypeError: If an argument is not a tensor, or ``normalized_shape`` is a number, not a
            sequence.
        ValueError: If ``autocast`` is neither ``"input"`` nor ``"match"``.

    Example:
        >>> from lightning_kernels import layer_norm
        >>> y = layer_norm(5 + 3 * torch.randn(4, 10, 64), (64,))
        >>> torch.allclose(y.mean(-1), torch.zeros(4, 10), atol=1e-5)
        True
        >>> torch.allclose(y.var(-1, correction=0), torch.ones(4, 10), atol=1e-4)
        True

    References:
        Ba, Kiros and Hinton, 2016, "Layer normalization", arXiv:1607.06450.
    """
    check_tensor("layer_norm", input)
    shape = shape_of(normalized_shape)
    check_eps("layer_norm", eps)
    dtype = None if autocast == "input" else autocast_dtype("layer_norm", input, autocast)
    if not (norm_runs_triton(input) and pays("layer_norm", input)):
        return _aten_layer_norm(input, shape, weight, bias, eps, dtype)
    check_rows("layer_norm", input, shape, weight=weight, bias=bias)
    return row_norm_operator(input, math.prod(shape), weight, bias, eps, True, dtype)[0]


def _aten_layer_norm(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """Call torch's function. The result has ``dtype``; ``None`` is the dtype of ``input``."""
    if dtype is not None:
        input = input.to(dtype)
    if not input.is_cpu:  # outside of the CPU, ATen needs input and parameters of one dtype
        check_rows("layer_norm", input, shape, weight=weight, bias=bias)
        weight, bias = (p if p is None else p.to(input.dtype) for p in (weight, bias))
        return without_autocast(torch.layer_norm, input, shape, weight, bias, eps)
    try:  # torch.nn.functional.layer_norm calls this function too, after slow checks in Python
        return torch.layer_norm(input, shape, weight, bias, eps)
    except RuntimeError as error:
        # If an argument does not fit, this error is clearer than torch's.
        check_rows("layer_norm", input, shape, weight=weight, bias=bias)
        note_dtype(error, input)
        raise
