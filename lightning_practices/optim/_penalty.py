r"""Penalties on the size of weights: L1, L2, and their sum, the elastic net.

The penalty :math:`\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2` has the gradient
:math:`\lambda_1 \operatorname{sign}(w) + \lambda_2 w`. Adding this gradient before each optimizer
step has the same effect as adding the penalty to the loss. It needs no autograd graph through all
weights, and it can't be counted twice when gradients are accumulated.
"""

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_practices._arguments import check_instance, check_listed, check_number

Weights = Iterable[Tensor] | Tensor


def penalty(weights: Weights, *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    r"""Return :math:`\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2`, a scalar tensor.

    The sum is computed in float32 or wider. It is differentiable, so it can be added to a loss;
    :func:`add_penalty_gradients_` has the same effect at a lower cost. For sharded weights it is
    the sum over all processes, each of which has to call this function.

    Source: "L1 and L2 regularization", lectures S3 and S4.

    Args:
        weights: One or more weight tensors, such as the values of
            :func:`~lightning_practices.optim.decayed_weights`. All their elements are penalised.
        l1: Strength :math:`\lambda_1` of the L1 penalty.
        l2: Strength :math:`\lambda_2` of the L2 penalty.

    Raises:
        ValueError: If ``l1`` or ``l2`` is negative or not finite.

    Example:
        >>> from lightning_practices.optim import penalty
        >>> penalty(torch.tensor([2.0, -4.0]), l1=0.1, l2=0.5)  # 0.1 * 6 + 0.5 / 2 * 20
        tensor(5.6000)
    """
    l1, l2 = check_number("l1", l1, ge=0), check_number("l2", l2, ge=0)
    listed = _listed(weights, stacklevel=3)
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

    Call it once per optimizer step, after the last backward pass and before gradients are clipped.
    Weights whose ``grad`` is None are skipped, as optimizers skip them.
    :math:`\operatorname{sign}(0) = 0`, as in the backward pass of ``abs``. L1 temporarily allocates
    as much memory as the weights; L2 allocates none.

    Source: as for :func:`penalty`.

    Args:
        weights: One or more weight tensors. The penalty's gradient is added to their ``grad``.
        l1: Strength :math:`\lambda_1` of the L1 penalty.
        l2: Strength :math:`\lambda_2` of the L2 penalty.
        scale: Factor of the penalty's gradient. If a ``GradScaler`` has scaled the loss and the
            gradients are not unscaled yet, give the loss scale: ``scaler.scale(torch.ones((),
            device=...))``.

    Raises:
        ValueError: If ``l1`` or ``l2`` is negative or not finite.
        RuntimeError: If a gradient is not sharded in the same way as its weight.

    Example:
        >>> from lightning_practices.optim import add_penalty_gradients_
        >>> weight = nn.Parameter(torch.tensor([2.0, -4.0]))
        >>> weight.sum().backward()  # a gradient of 1
        >>> add_penalty_gradients_([weight], l1=0.1, l2=0.5)  # before gradients are clipped
        >>> weight.grad
        tensor([ 2.1000, -1.1000])
    """
    l1, l2 = check_number("l1", l1, ge=0), check_number("l2", l2, ge=0)
    if scale is not None:
        check_instance("scale", scale, Tensor, "a tensor, the loss scale")
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
    r"""Replace weights by :math:`\operatorname{sign}(w) \max(|w| - t, 0)`, in place.

    This is the proximal step of the L1 penalty. After a step of gradient descent at the rate
    :math:`\eta`, with :math:`t = \eta \lambda_1`, it sets the weights that barely affect the loss
    to exactly 0. Under the gradient of L1 these weights would oscillate around 0.

    Source: Beck and Teboulle, 2009, "A fast iterative shrinkage-thresholding algorithm for linear
    inverse problems", SIAM Journal on Imaging Sciences 2(1).

    Args:
        weights: One or more weight tensors.
        threshold: Threshold :math:`t`. A tensor of one element stays on its device.

    Raises:
        ValueError: If ``threshold`` is a number that is negative or nan.

    Example:
        >>> from lightning_practices.optim import soft_threshold_
        >>> weight = torch.tensor([0.05, -0.3, 1.0])
        >>> soft_threshold_(weight, 0.1)
        >>> weight
        tensor([ 0.0000, -0.2000,  0.9000])
    """
    values = [_local(w) for w in _listed(weights)]
    if isinstance(threshold, Tensor):
        for value in values:
            limit = threshold.to(value.device, value.dtype)
            value.sub_(value.clamp(-limit, limit))
        return
    threshold = check_number("threshold", threshold, ge=0, finite=False)
    if values:
        # w - clamp(w) is +0 for the weights within the threshold, whatever their sign.
        inside = torch._foreach_clamp_min(values, -threshold)
        torch._foreach_clamp_max_(inside, threshold)
        torch._foreach_sub_(values, inside)


def _listed(weights: Weights, stacklevel: int = 4) -> list[Tensor]:
    """Return the weights as a list. Warn of an iterator that has none: it has been used up.

    ``stacklevel`` is that of the caller of a public function, by default of a decorated one.
    """
    expected = "a tensor, or several"
    listed = (
        [weights] if isinstance(weights, Tensor) else check_listed("weights", weights, expected)
    )
    if not listed and isinstance(weights, Iterator):
        warnings.warn(
            "`weights` is an empty generator, so nothing is penalised: pass model.parameters()"
            " itself, which is a new generator at each call, or a list",
            stacklevel=stacklevel,
        )
    return [check_instance("weights", weight, Tensor, expected) for weight in listed]


def _norm(weights: list[Tensor], order: float, like: Tensor) -> Tensor:
    """Return the norm of all weights together, computed in float32 or wider."""
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
    """Return this process's shard of a ``DTensor``; any other tensor unchanged."""
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
