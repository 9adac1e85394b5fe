r"""Penalties on the size of weights: L1, L2 and both, the elastic net.

The term of the loss, :math:`\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2`, has a gradient
that is known, :math:`\lambda_1 \operatorname{sign}(w) + \lambda_2 w`. To add that to the gradients
before each step is the same, without a graph through all weights, and can't be counted twice when
gradients are accumulated.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Weights = Iterable[Tensor] | Tensor


def penalty(weights: Weights, *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    r"""Return :math:`\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2`, a number.

    Computed in float32 at least. It can be added to a loss, as it has a gradient;
    :func:`add_penalty_gradients_` does the same for less. Of sharded weights it is the sum over all
    processes, each of which has to call this.

    Source: "L1 and L2 regularization", lectures S3 and S4.

    Args:
        weights: A tensor or several, all of it and not single rows: see
            :func:`~lightning_practices.optim.decayed_weights`.
        l1: :math:`\lambda_1`.
        l2: :math:`\lambda_2`.

    Raises:
        ValueError: If ``l1`` or ``l2`` is negative or not finite.
    """
    check_strengths(l1, l2)
    listed = _listed(weights)
    total = torch.zeros((), device=listed[0].device if listed else None)
    if l1:
        total = total + l1 * _norm(listed, 1.0, total)
    if l2:
        total = total + l2 / 2 * _norm(listed, 2.0, total).square()
    return total


@torch.no_grad()
def add_penalty_gradients_(
    weights: Weights, *, l1: float = 0.0, l2: float = 0.0, scale: Tensor | None = None
) -> None:
    r"""Add :math:`\lambda_1 \operatorname{sign}(w) + \lambda_2 w` to the gradients, in place.

    ::

        loss.backward()
        add_penalty_gradients_(decayed_weights(model).values(), l2=1e-4)
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    Once for each step of the optimizer, however many backward passes there were, after the last one
    and before gradients are clipped. A weight without a gradient is left alone, as optimizers leave
    it. :math:`\operatorname{sign}(0) = 0`, as in the backward pass of ``abs``. L1 takes the memory
    of the weights for a moment, L2 none.

    Source: as for :func:`penalty`.

    Args:
        weights: A tensor or several, whose ``grad`` is added to.
        l1: :math:`\lambda_1`.
        l2: :math:`\lambda_2`.
        scale: What the gradients are multiplied by, if a ``GradScaler`` has scaled the loss and
            they are not unscaled yet: ``scaler.scale(torch.ones((), device=...))``.

    Raises:
        ValueError: If ``l1`` or ``l2`` is negative or not finite.
        RuntimeError: If a gradient is not sharded as its weight is.
    """
    check_strengths(l1, l2)
    pairs = [(w, w.grad) for w in _listed(weights) if w.grad is not None]
    if not pairs:
        return
    values = [_local(w) for w, _ in pairs]
    grads = [_local_grad(w, grad) for w, grad in pairs]
    if l2:
        _add(grads, values, l2, scale)
    if l1:
        _add(grads, torch._foreach_sign(values), l1, scale)


@torch.no_grad()
def soft_threshold_(weights: Weights, threshold: float | Tensor) -> None:
    r"""Let weights become :math:`\operatorname{sign}(w) \max(|w| - t, 0)`, in place.

    The proximal step of L1: after a step of gradient descent at the rate :math:`\eta`, with
    :math:`t = \eta \lambda_1`, the weights that do not matter are exactly 0. By the gradient of L1
    they would end up near to it, now on this side and now on that.

    Source: Beck and Teboulle, 2009, "A fast iterative shrinkage-thresholding algorithm for linear
    inverse problems", SIAM Journal on Imaging Sciences 2(1).

    Args:
        weights: A tensor or several.
        threshold: :math:`t`; a tensor of one number stays on its device.

    Raises:
        ValueError: If a ``threshold`` that isn't a tensor is negative or not a number.
    """
    values = [_local(w) for w in _listed(weights)]
    if isinstance(threshold, Tensor):
        for value in values:
            limit = threshold.to(value.device, value.dtype)
            value.sub_(value.clamp(-limit, limit))
        return
    if not threshold >= 0:
        raise ValueError(f"threshold has to be 0 or more, but got {threshold!r}")
    if values:
        # w - w is 0, and has no sign.
        inside = torch._foreach_clamp_min(values, -threshold)
        torch._foreach_clamp_max_(inside, threshold)
        torch._foreach_sub_(values, inside)


def check_strengths(l1: float, l2: float) -> None:
    """Refuse strengths of a penalty that are negative or not finite.

    Raises:
        ValueError: If one is.
    """
    for name, value in {"l1": l1, "l2": l2}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} has to be 0 or more, and finite, but got {value!r}")


def _listed(weights: Weights) -> list[Tensor]:
    return [weights] if isinstance(weights, Tensor) else list(weights)


def _norm(weights: list[Tensor], order: float, like: Tensor) -> Tensor:
    """Return the norm of all weights together, in float32 at least."""
    alike: dict[object, list[Tensor]] = {}
    for w in weights:
        wide = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
        mesh = w.device_mesh if isinstance(w, DTensor) else None
        alike.setdefault((mesh, wide.device, wide.dtype), []).append(wide)
    parts = [like.new_zeros(())]
    for members in alike.values():
        norms = torch.stack(torch._foreach_norm(members, order))
        part = torch.linalg.vector_norm(norms, order)
        parts.append((part.full_tensor() if isinstance(part, DTensor) else part).to(like.device))
    widest = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([p.to(widest) for p in parts]), order)
    return norm


def _add(grads: list[Tensor], terms: Iterable[Tensor], factor: float, scale: Tensor | None) -> None:
    terms = tuple(terms)
    if scale is None:
        torch._foreach_add_(grads, terms, alpha=factor)
    else:
        scales = [scale.to(grad.device) for grad in grads]
        torch._foreach_addcmul_(grads, terms, scales, value=factor)


def _local(tensor: Tensor) -> Tensor:
    """Return what is here of a tensor: each element is computed by itself."""
    if not isinstance(tensor, DTensor):
        return tensor
    local: Tensor = tensor.to_local()
    return local


def _local_grad(weight: Tensor, grad: Tensor) -> Tensor:
    if isinstance(weight, DTensor) != isinstance(grad, DTensor) or (
        isinstance(weight, DTensor)
        and isinstance(grad, DTensor)
        and weight.placements != grad.placements
    ):
        raise RuntimeError(
            f"a gradient has the placements {getattr(grad, 'placements', None)}, its weight"
            f" {getattr(weight, 'placements', None)}: sum it over its processes and share it out as"
            " the weight is, before the penalty is added"
        )
    return _local(grad)
