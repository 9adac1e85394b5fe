"""Dropout, stochastic depth, layer scale, addition of the residual and norm, in one pass."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_kernels._add_norm.operator import add_norm_operator
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import is_transformed, norm_runs_triton
from lightning_kernels._core.parameters import (
    check_eps,
    check_floating,
    check_residual,
    check_rows,
    shape_of,
)
from lightning_kernels._core.random import reserve
from lightning_kernels._core.rate import resolve_rate, survivors_scale
from lightning_kernels._dropout import dropout
from lightning_kernels._row_norm import layer_norm, rms_norm
from lightning_kernels._stochastic_depth import stochastic_depth

# The longest rows that a program can hold in registers without spilling
# (tests/test_machine_code.py). The program holds a row and its gradients. If the layer scale
# requires a gradient, the program also holds the branch and a third sum, so the limit is lower.
_LONGEST = 8192
_LONGEST_SCALED = 4096


def add_dropout_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    p: float | Tensor = 0.0,
    drop_path: float | Tensor = 0.0,
    layer_scale: Tensor | None = None,
    eps: float = 1e-5,
    training: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""Drop elements and samples of a branch, scale it, add the residual and layer-normalise.

    .. math:: z = r + \frac{m_n}{1 - q} \, \lambda \odot \frac{d \odot x}{1 - p}, \qquad
        y = \mathrm{layer\_norm}(z), \qquad
        m_n \sim \text{Bernoulli}(1 - q), \quad d_i \sim \text{Bernoulli}(1 - p)

    One pass computes both results. Such a step ends each block of a transformer. The computation is
    float32. In evaluation nothing is dropped. The result equals, in distribution, the result of
    :func:`lightning_kernels.dropout`, :func:`lightning_kernels.stochastic_depth` of mode ``"row"``
    and :func:`lightning_kernels.layer_norm` one after the other. These three functions are called
    where the kernels do not run (see :func:`lightning_kernels.route`), for rows of more than 8192
    elements, and for rows of more than 4096 elements if the layer scale requires a gradient.

    The masks are functions of torch's seed, its Philox offset, row and column, so the backward pass
    draws them again. The graph keeps ``z``, two numbers per row and, if the layer scale requires a
    gradient, ``x``. The backward pass takes one pass over these tensors. It sums the gradients of
    the parameters in float32 in a fixed order. With a residual the kernels do not read the branch
    of a dropped sample.

    Args:
        x: The branch, of shape ``(*, *normalized_shape)``, floating point. The first dimension
            indexes the samples.
        residual: Tensor :math:`r` of the shape and dtype of ``x``, or of float32 if ``x`` has 16
            bits. ``None`` adds nothing.
        normalized_shape: Sizes of the last dimensions of ``x``, at least one, which form a row.
        weight: Scale of the norm, of shape ``normalized_shape``, in the dtype of ``x`` or float32.
        bias: Shift of the norm, like ``weight``.
        p: Probability of zeroing an element: a number, or a tensor of one float32 on the device of
            ``x`` (see :func:`lightning_kernels.dropout`).
        drop_path: Probability :math:`q` of dropping the branch of a sample: a number or a tensor,
            like ``p``.
        layer_scale: Factors :math:`\lambda` of the branch, like ``weight``.
        eps: Number that is added to the variance.
        training: Whether to drop. Everything else is computed in evaluation too.

    Returns:
        The normalised sum ``y``, contiguous, in the dtype of ``x``. The sum ``z``, in the dtype of
        the residual if it is given, else of ``x``. ``z`` is ``x`` itself if there is no residual,
        no layer scale and no drop.

    Raises:
        NotImplementedError: If ``x`` is not floating point.
        RuntimeError: If the shape, dtype or device of an argument
            does not fit ``x``. If ``drop_path`` is not 0 and ``x`` has no dimension of samples.
        TypeError: If ``normalized_shape`` is a number, not a sequence.
        ValueError: If a rate is outside ``[0, 1]`` or nan.

    Example:
        >>> from lightning_kernels import add_dropout_layer_norm
        >>> x = torch.randn(4, 10, 64)
        >>> y, z = add_dropout_layer_norm(x, x, (64,), torch.ones(64), p=0.1, drop_path=0.2)
        >>> torch.allclose(y.mean(-1), torch.zeros(4, 10), atol=1e-5)
        True
        >>> y, z = add_dropout_layer_norm(x, x, (64,), p=0.1, training=False)
        >>> torch.equal(z, 2 * x)
        True

    References:
        Ba et al., 2016, arXiv:1607.06450 (layer norm); Srivastava et al., 2014 (dropout); Huang et
        al., 2016, arXiv:1603.09382 (stochastic depth); Touvron et al., 2021, arXiv:2103.17239
        (layer scale).
    """
    return _run(
        "add_dropout_layer_norm", x, residual, normalized_shape, weight, bias, p, drop_path,
        layer_scale, eps, training, True,
    )  # fmt: skip


def add_dropout_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    *,
    p: float | Tensor = 0.0,
    drop_path: float | Tensor = 0.0,
    layer_scale: Tensor | None = None,
    eps: float | None = None,
    training: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""Drop elements and samples of a branch, scale it, add the residual and RMS-normalise.

    The function is :func:`add_dropout_layer_norm` with :func:`lightning_kernels.rms_norm` as its
    norm. It has no ``bias``, and another default of ``eps``. All other arguments, the results and
    the errors are the same. The graph keeps ``z``, one number per row and, if the layer scale
    requires a gradient, ``x``.

    Args:
        x: The branch, of shape ``(*, *normalized_shape)``, floating point. The first dimension
            indexes the samples.
        residual: Tensor that the branch is added to, or ``None``.
        normalized_shape: Sizes of the last dimensions of ``x``, at least one, which form a row.
        weight: Scale of the norm, of shape ``normalized_shape``, in the dtype of ``x`` or float32.
        p: Probability of zeroing an element: a number, or a tensor of one float32.
        drop_path: Probability of dropping the branch of a sample: a number, or a tensor of one
            float32.
        layer_scale: Factors of the branch, like ``weight``.
        eps: Number that is added to the mean square. ``None`` is the machine epsilon of float32, or
            of float64 for an input of float64.
        training: Whether to drop. Everything else is computed in evaluation too.

    Returns:
        The normalised sum ``y``, in the dtype of ``x``. The sum ``z``, in the dtype of the residual
        if it is given, else of ``x``.

    Example:
        >>> from lightning_kernels import add_dropout_rms_norm
        >>> x = torch.randn(4, 10, 64)
        >>> y, z = add_dropout_rms_norm(x, x, (64,), torch.ones(64), p=0.1, drop_path=0.2)
        >>> torch.allclose(y.square().mean(-1), torch.ones(4, 10), atol=1e-5)
        True

    References:
        Zhang and Sennrich, 2019, "Root mean square layer normalization", arXiv:1910.07467.
    """
    return _run(
        "add_dropout_rms_norm", x, residual, normalized_shape, weight, None, p, drop_path,
        layer_scale, eps, training, False,
    )  # fmt: skip


def _run(
    function: str, x: Tensor, residual: Tensor | None, normalized_shape: Sequence[int],
    weight: Tensor | None, bias: Tensor | None, p: float | Tensor, drop_path: float | Tensor,
    layer_scale: Tensor | None, eps: float | None, training: bool, centred: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Check the arguments. Call the operator, or :func:`_composed` where the kernels do not run."""
    check_floating(function, x)
    shape = shape_of(normalized_shape)
    if eps is not None or centred:  # None is a value of RMS norm alone
        check_eps(function, eps, least=0)
    check_rows(function, x, shape, weight=weight, bias=bias, layer_scale=layer_scale)
    if residual is not None:
        check_residual(function, x, residual)
    p, rate = resolve_rate(function, p, x)
    if type(drop_path) is float and drop_path == 0.0:  # without a call, for speed
        path_rate = None
    else:
        drop_path, path_rate = resolve_rate(f"{function}: drop_path as the", drop_path, x)
    if not training:
        p, rate, drop_path, path_rate = 0.0, None, 0.0, None
    drops_paths = drop_path != 0.0 or path_rate is not None
    if drops_paths and x.dim() == len(shape):
        raise RuntimeError(
            f"{function} expects samples to drop in a first dimension before normalized_shape"
            f" {list(shape)}, but got x of {list(x.shape)}: add that dimension, or set drop_path"
            " to 0"
        )
    rates = p if rate is None else rate, drop_path if path_rate is None else path_rate
    drops = drops_paths or p != 0.0 or rate is not None
    if not (norm_runs_triton(x) and _serves(x, residual, shape, layer_scale, drops)):
        return _composed(x, residual, shape, weight, bias, *rates, layer_scale, eps, centred)
    if eps is None:
        eps = torch.finfo(torch.float32).eps
    place = reserve(x) if drops else (None, 0, 0)
    y, z, _ = add_norm_operator(
        x, residual, layer_scale, weight, bias, math.prod(shape), eps, centred, p, rate, drop_path,
        path_rate, *place,
    )  # fmt: skip
    return y, z


def _serves(
    x: Tensor, residual: Tensor | None, shape: tuple[int, ...], layer_scale: Tensor | None,
    drops: bool,
) -> bool:  # fmt: skip
    """Return whether the kernel can compute a call with these arguments, and pays."""
    scaled = layer_scale is not None and layer_scale.requires_grad
    is_bare = residual is None and layer_scale is None and not drops
    longest = _LONGEST_SCALED if scaled else _LONGEST
    return not is_bare and math.prod(shape) <= longest and pays("add_norm", x)


def _composed(
    x: Tensor, residual: Tensor | None, shape: tuple[int, ...], weight: Tensor | None,
    bias: Tensor | None, p: float | Tensor, drop_path: float | Tensor, layer_scale: Tensor | None,
    eps: float | None, centred: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Call dropout, the addition or stochastic depth, and the norm one after the other.

    On the CPU the calls take as long as small tensors. So none is made that has nothing to do.
    """
    if layer_scale is not None or type(drop_path) is not float or drop_path != 0.0:
        z = _add_scaled(dropout(x, p), residual, shape, drop_path, layer_scale)
    elif residual is None:
        z = dropout(x, p)
    elif type(p) is float and p == 0.0:
        z = residual + x
    elif x.is_cpu and type(p) is float and type(x) is Tensor and not is_transformed():
        z = _drop_add(x, residual, p)
    else:
        z = residual + dropout(x, p)
    if z.dtype != x.dtype:  # the norm takes parameters of the dtype of its input
        weight, bias = (None if t is None else t.to(z.dtype) for t in (weight, bias))
    if centred:
        y = layer_norm(z, shape, weight, bias, 1e-5 if eps is None else eps)
    else:
        y = rms_norm(z, shape, weight, eps)
    return y if y.dtype is x.dtype else y.to(x.dtype), z


def _add_scaled(
    x: Tensor, residual: Tensor | None, shape: tuple[int, ...], drop_path: float | Tensor,
    layer_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    """Call stochastic depth, which takes a layer scale of one dimension."""
    if layer_scale is None or len(shape) == 1:
        return stochastic_depth(x, drop_path, "row", residual=residual, layer_scale=layer_scale)
    flat = None if residual is None else residual.flatten(-len(shape))
    z = stochastic_depth(
        x.flatten(-len(shape)), drop_path, "row", residual=flat, layer_scale=layer_scale.flatten()
    )
    return z.reshape(x.shape)


def _drop_add(x: Tensor, residual: Tensor, p: float) -> Tensor:
    """Return the sum of the residual and of dropout of ``x``, by torch's functions.

    The mask is that of torch's dropout, which would scale the mask and multiply ``x`` by it in two
    further passes.
    """
    kept = torch.empty_like(x).bernoulli_(1 - p)
    return torch.addcmul(residual, x, kept, value=survivors_scale(p))
