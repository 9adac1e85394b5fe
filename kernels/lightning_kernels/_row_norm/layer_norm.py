"""Layer normalisation."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import norm_runs_triton, without_autocast
from lightning_kernels._core.parameters import check_parameter, check_rows, shape_of
from lightning_kernels._row_norm.operator import row_norm

Autocast = Literal["input", "match"]


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

    with the mean and the biased variance of each row, both computed in float32. The arguments are
    those of :func:`torch.nn.functional.layer_norm`. The backward pass reads ``input`` and the
    gradient once (for rows above 8192 elements a second time from the cache, and a third time for
    the parameters), sums the parameters' gradients in float32 in a fixed order (a rerun on the same
    device is bitwise equal) and keeps two numbers per row beside its inputs. Rows may be those of
    a view, as heads in a larger projection are: nothing is copied. Where the kernels do not run
    (see :func:`lightning_kernels.route`) this is torch's own function.

    Under autocast on a GPU torch returns float32; this returns the type of ``input``, unless told
    to match, which halves the memory that the result takes. It is computed in float32 either way.

    Args:
        input: ``(*, *normalized_shape)``, floating point.
        normalized_shape: The last dimensions of ``input``, at least one.
        weight: Scale of shape ``normalized_shape``, in ``input``'s type or float32.
        bias: Shift, likewise.
        eps: Added to the variance.
        autocast: What decides on the type of the result under autocast: ``"input"``, or as torch
            does (float32 on a GPU) with ``"match"``.

    Returns:
        Contiguous tensor with the shape and dtype of ``input``, see ``autocast``.

    Raises:
        NotImplementedError: If ``input`` is not floating point.
        RuntimeError: If shapes, dtypes or devices do not go together.
        ValueError: If ``autocast`` is neither.

    References:
        Ba, Kiros and Hinton, 2016, "Layer normalization", arXiv:1607.06450.
    """
    if not input.is_floating_point():
        raise NotImplementedError(
            f"layer_norm expects a floating-point input, but got {input.dtype}"
        )
    shape = shape_of(normalized_shape)
    dtype = autocast_dtype("layer_norm", input, autocast)
    if not norm_runs_triton(input):
        return _aten_layer_norm(input, shape, weight, bias, eps, dtype)
    _check(input, shape, weight, bias)
    return row_norm(input, math.prod(shape), weight, bias, eps, True, dtype)[0]


def autocast_dtype(function: str, input: Tensor, autocast: Autocast) -> torch.dtype | None:
    """Return float32 where torch's norms return that rather than the input's type.

    Raises:
        ValueError: If ``autocast`` is neither of its values.
    """
    if autocast == "input":
        return None
    if autocast not in get_args(Autocast):
        known = " or ".join(map(repr, get_args(Autocast)))
        raise ValueError(f"{function} expects autocast as {known}, but got {autocast!r}")
    is_half = input.dtype in (torch.float16, torch.bfloat16)
    matched = is_half and input.is_cuda and torch.is_autocast_enabled("cuda")
    return torch.float32 if matched else None


def _aten_layer_norm(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """Call torch's function, which checks its arguments, and return ``dtype``, else the input's."""
    if dtype is not None:
        input = input.to(dtype)
    if not input.is_cpu:  # ATen mixes types on the CPU only
        weight, bias = (p if p is None else p.to(input.dtype) for p in (weight, bias))
    try:
        return without_autocast(torch.nn.functional.layer_norm, input, shape, weight, bias, eps)
    except RuntimeError:
        _check(input, shape, weight, bias)  # clearer, where it knows what is wrong
        raise


def _check(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> None:
    check_rows("layer_norm", input, shape)
    check_parameter("layer_norm", "weight", weight, shape, "normalized_shape", input)
    check_parameter("layer_norm", "bias", bias, shape, "normalized_shape", input)
