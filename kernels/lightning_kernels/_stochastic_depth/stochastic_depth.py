"""Stochastic depth."""

import torch
from torch import Tensor

from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import norm_runs_triton, runs_triton
from lightning_kernels._core.parameters import check_floating, check_residual, dimensions_of
from lightning_kernels._core.random import reserve
from lightning_kernels._core.rate import aten_factor, resolve_rate, survivors_scale
from lightning_kernels._stochastic_depth.operator import stochastic_depth_operator


def stochastic_depth(
    input: Tensor,
    p: float | Tensor,
    mode: str,
    training: bool = True,
    *,
    residual: Tensor | None = None,
    layer_scale: Tensor | None = None,
) -> Tensor:
    r"""Drop the branch of each sample with probability ``p``, scale it and add ``residual``.

    .. math:: y_n = r_n + \frac{m_n}{1 - p} \, \lambda \odot x_n,
        \quad m_n \sim \text{Bernoulli}(1 - p)

    One pass computes :math:`y`. In evaluation :math:`m_n / (1 - p)` is 1. The positional arguments
    are those of ``torchvision.ops.stochastic_depth``. The result equals torchvision's in
    distribution, not bit for bit. The draw :math:`m_n` is a function of torch's seed, its Philox
    offset and the index of the sample, so the backward pass draws it again and the graph does not
    keep it. The graph keeps ``input`` only if ``layer_scale`` requires a gradient. This gradient is
    summed in float32 in a fixed order.

    With a residual the kernels do not read a dropped branch, neither forward nor backward, so nan
    in a dropped branch has no effect. Without a residual, and where the kernels do not run (see
    :func:`lightning_kernels.route`), a dropped branch is multiplied by 0 as in torchvision, and nan
    stays nan.

    Args:
        input: The branch, of shape ``(N, *)``, floating point.
        p: Probability of dropping the branch: a number, or a tensor of one float32 on the device of
            ``input`` (see :func:`lightning_kernels.dropout`).
        mode: ``"row"`` for one draw per sample, ``"batch"`` for one draw for all samples.
        training: Whether to drop. ``layer_scale`` and ``residual`` are applied in evaluation too.
        residual: Tensor :math:`r` of the shape and dtype of ``input``, or of float32 if ``input``
            has 16 bits. ``None`` adds nothing.
        layer_scale: Factors :math:`\lambda`, one number per channel, in the dtype of ``input`` or
            float32. The shape broadcasts against ``input`` and so determines the dimension of the
            channels: ``(C, 1, 1)`` for ``(N, C, H, W)``, ``(C,)`` for ``(N, L, C)``.

    Returns:
        Tensor of the shape of ``input``, in the dtype of ``residual`` if it is given, else of
        ``input``. It has the strides of ``input`` if ``input`` is dense and the first dimension is
        the outermost in memory; otherwise it is contiguous. It is ``input`` itself if nothing is
        dropped, scaled or added.

    Raises:
        NotImplementedError: If ``input`` is not floating point.
        RuntimeError: If the shape, dtype or device of an
            argument does not fit ``input``.
        ValueError: If ``p`` is outside ``[0, 1]`` or nan. If ``mode`` is neither ``"row"`` nor
            ``"batch"``.

    Example:
        >>> from lightning_kernels import stochastic_depth
        >>> branch, residual = torch.ones(100, 16), torch.ones(100, 16)
        >>> y = stochastic_depth(branch, 0.5, "row", residual=residual)
        >>> y.unique()  # the branch is dropped, or scaled by 2
        tensor([1., 3.])

    References:
        Huang et al., 2016, "Deep networks with stochastic depth", arXiv:1603.09382; Touvron et al.,
        2021, "Going deeper with image transformers", arXiv:2103.17239 (layer scale).
    """
    if mode not in ("batch", "row"):
        raise ValueError(f"mode has to be either 'batch' or 'row', but got {mode}")
    p, rate = resolve_rate("stochastic_depth", p, input)
    drops = training and (p != 0.0 or rate is not None)
    if not drops and residual is None and layer_scale is None:
        return input
    _check(input, mode, residual)
    dim = -1 if layer_scale is None else _channel_dim(input, layer_scale)
    if not drops:
        p, rate = 0.0, None
    # Without a drop, the addition follows set_compiled_norms, so that Inductor can fuse it with the
    # norm that comes next.
    serves = runs_triton if drops else norm_runs_triton
    if not (serves(input) and pays("stochastic_depth", input, residual is not None)):
        return _aten(input, mode, drops, p, rate, residual, layer_scale)
    place = reserve(input) if drops else (None, 0, 0)
    dtype = input.dtype if residual is None else residual.dtype
    return stochastic_depth_operator(
        input, residual, layer_scale, dim, mode == "row", drops, residual is not None, p, rate,
        dtype, *place,
    )  # fmt: skip


def _aten(
    x: Tensor, mode: str, drops: bool, p: float, rate: Tensor | None, residual: Tensor | None,
    layer_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compute stochastic depth by torch's functions.

    The factors of samples and channels are multiplied first, because they are few.
    """
    like = x if residual is None else residual
    factor, scale = layer_scale, 1.0
    if drops:
        shape = [1] * x.dim()
        if mode == "row":
            shape[0] = x.shape[0]
        if rate is not None:
            kept = aten_factor(like, shape, rate)
        else:
            kept = like.new_empty(shape).bernoulli_(1 - p)
            scale = survivors_scale(p)
            if residual is None or x.itemsize < 4:  # else addcmul scales, without a further call
                kept.mul_(scale)  # addcmul would round x times the scale in the backward pass
                scale = 1.0
        factor = kept if layer_scale is None else kept * layer_scale
    if factor is None:
        return like + x
    if factor.dtype is not like.dtype:
        factor = factor.to(like.dtype)
    return x * factor if residual is None else torch.addcmul(residual, x, factor, value=scale)


def _check(x: Tensor, mode: str, residual: Tensor | None) -> None:
    """Raise RuntimeError if ``x`` or the residual is not supported.

    ``x`` must be floating point, and have samples in mode ``"row"``. The shape, dtype and device of
    the residual must fit ``x``.
    """
    check_floating("stochastic_depth", x)
    if mode == "row" and x.dim() == 0:
        raise RuntimeError(
            "stochastic_depth expects an input of shape (N, *) for mode 'row', but got []"
        )
    check_residual("stochastic_depth", x, residual)


def _channel_dim(x: Tensor, layer_scale: Tensor) -> int:
    """Return the dimension of ``x`` that has the channels, or -1 if the layer scale is one number.

    Raises:
        RuntimeError: If the shape, device or dtype of ``layer_scale`` does not fit ``x``.
    """
    if (  # the cheapest test first
        isinstance(layer_scale, Tensor)
        and layer_scale.shape == x.shape[-1:]
        and layer_scale.dtype is x.dtype
        and layer_scale.device == x.device
    ):
        return x.dim() - 1 if x.shape[-1:] != (1,) else -1
    missing = x.dim() - dimensions_of("stochastic_depth", layer_scale, "layer_scale")
    dims = [dim + missing for dim, size in enumerate(layer_scale.shape) if size != 1]
    if missing < 0 or len(dims) > 1 or any(x.shape[d] != layer_scale.numel() for d in dims):
        raise RuntimeError(
            "stochastic_depth expects a layer_scale that broadcasts against x with one dimension of"
            f" more than 1 element, but got {list(layer_scale.shape)} for x of {list(x.shape)}"
        )
    if layer_scale.device != x.device or layer_scale.dtype not in (x.dtype, torch.float32):
        raise RuntimeError(
            f"stochastic_depth expects layer_scale of {x.dtype} (x's) or torch.float32 on"
            f" {x.device}, but got {layer_scale.dtype} on {layer_scale.device}"
        )
    return dims[0] if dims else -1
