"""Gradient clipping by ``grad_scale``, by which torch's fused optimizers divide the gradients."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_kernels._clip_grad.clip_grad import gradients, hold
from lightning_kernels._clip_grad.kernels import _grad_scale_kernel
from lightning_kernels._clip_grad.passes import limit_on, norm_name, norm_of
from lightning_kernels._core.launch import launch, next_power_of_2
from lightning_kernels._core.parameters import number_of


class GradScale(NamedTuple):
    """Result of :func:`clip_grad_scale`: tensors of one element on the device of the gradients.

    Attributes:
        norm: The norm before clipping of the gradients without the loss scale.
        grad_scale: The divisor of the gradients, float32. Assign it to the optimizer's attribute
            ``grad_scale``.
        found_inf: 1 if the norm is nan or infinite, else 0, float32. Assign it to the optimizer's
            attribute ``found_inf`` if the optimizer should skip steps with nan or infinity.

    Example:
        >>> from lightning_kernels import clip_grad_scale
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> norm, divisor, found_inf = clip_grad_scale([weight], max_norm=1.0)
        >>> norm, divisor, found_inf
        (tensor(5.), tensor(5.0000), tensor(0.))
    """

    norm: Tensor
    grad_scale: Tensor
    found_inf: Tensor


@torch.no_grad()
def clip_grad_scale(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    *,
    loss_scale: float | Tensor = 1.0,
) -> GradScale:
    r"""Return a divisor of the gradients that scales them to a norm of at most ``max_norm``.

    .. math:: s \cdot \max\left(1, \frac{\lVert g / s \rVert + 10^{-6}}{C}\right)

    The divisor is the inverse of the factor of :func:`clip_grad_norm_`, times the loss scale
    :math:`s`. The gradients are read once and not changed. Torch's fused optimizers
    (``fused=True``: SGD, Adam, AdamW, Adagrad) divide the gradients by their attribute
    ``grad_scale`` in the pass that updates the parameters, and write the quotients to the
    gradients. The update equals the update after :func:`clip_grad_norm_` up to the last bit:
    ``clip_grad_norm_`` multiplies where the optimizer divides.

    With the scale of a ``GradScaler`` as ``loss_scale``, this one pass replaces two passes of the
    scaler: the search for nan and infinity, and the division.

    This is faster than :func:`clip_grad_norm_` if most steps are clipped or have a loss scale: an
    optimizer with a ``grad_scale`` writes the gradients at each step, while
    :func:`clip_grad_norm_` writes them only when it clips.

    Args:
        parameters: Parameters whose ``grad`` is read. Parameters without ``grad`` are skipped.
        max_norm: Largest norm :math:`C`: a number, or a tensor of one element, which only the
            device reads.
        norm_type: Order of the norm: any positive number, or ``inf``.
        loss_scale: Factor :math:`s` by which the loss, and so the gradients, have been multiplied.
            A norm of the scaled gradients beyond the range of float32 counts as infinite.

    Returns:
        The norm before clipping, the divisor, and whether the norm is nan or infinite. Without
        gradients the norm is 0 and the divisor is the loss scale.

    Raises:
        ValueError: If ``max_norm`` is a tensor of more than one element.

    Example:
        >>> from lightning_kernels import clip_grad_scale
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
        >>> norm, optimizer.grad_scale, _ = clip_grad_scale([weight], max_norm=1.0)
        >>> optimizer.step()
        >>> del optimizer.grad_scale
        >>> norm, weight.data
        (tensor(5.), tensor([-0.6000, -0.8000]))
    """
    norm_type = number_of("clip_grad_scale", "norm_type", norm_type)
    grads = gradients(parameters)
    if not grads:
        device = loss_scale.device if isinstance(loss_scale, Tensor) else None
        return _by_aten(torch.zeros((), device=device), max_norm, loss_scale)
    held = hold(grads)
    total = held.total_norm(norm_type)
    if total is not None:
        return _by_aten(total, max_norm, loss_scale)
    shares = held.shares(norm_type)
    if held.table is None:
        return _by_aten(norm_of(shares, norm_type), max_norm, loss_scale)
    device = shares.device
    results = torch.empty(3, device=device).unbind()
    number, limit = limit_on(device, max_norm)
    launch(
        _grad_scale_kernel, (1,), device, shares, _on(device, loss_scale), limit, *results,
        len(shares), number, norm_type, NORM=norm_name(norm_type),
        PARTIALS=next_power_of_2(len(shares)),
    )  # fmt: skip
    return GradScale(*results)


def _by_aten(total: Tensor, max_norm: float | Tensor, loss_scale: float | Tensor) -> GradScale:
    """Compute the result by torch's functions, given the norm of the scaled gradients."""
    number, limit = limit_on(total.device, max_norm)
    scale = _on(total.device, loss_scale)
    norm = total if scale is None else total / scale
    divisor = ((norm + 1e-6) / (number if limit is None else limit)).clamp(min=1)
    grad_scale = divisor if scale is None else divisor * scale
    return GradScale(norm, grad_scale.float(), (~norm.isfinite()).float())


def _on(device: torch.device, loss_scale: float | Tensor) -> Tensor | None:
    """Return the loss scale as a float32 tensor on ``device``, or ``None`` for the number 1."""
    if not isinstance(loss_scale, Tensor):
        if loss_scale == 1.0:
            return None
        loss_scale = torch.tensor(number_of("clip_grad_scale", "loss_scale", loss_scale))
    return loss_scale.detach().reshape(()).to(device, torch.float32, non_blocking=True)
