"""The losses that torch's functions have computed in a step, and the losses of their priors."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from lightning_practices.callbacks._training_advisor.graph import Node
from lightning_practices.callbacks._training_advisor.targets import Given

_SAMPLES = 8  # fewer say little of the spread of a target
_DISTANCES: dict[str, Callable[..., Tensor]] = {  # by the names of their nodes
    "mse_loss": functional.mse_loss,
    "smooth_l1loss": functional.smooth_l1_loss,
    "huber_loss": functional.huber_loss,
}


def measured(node: Node, given: Given) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield a loss's kind and numbers, if a node is a loss whose prior is known.

    The numbers are its value, its prior's, the number of classes, the first class, and whether the
    target comes from the batch.

    Args:
        node: A node of the graph.
        given: The batch.
    """
    x, target = node.saved("self"), node.saved("target")
    if x is None or target is None or not target.numel():
        return
    nothing = torch.full((), -1.0, device=x.device)
    if node.kind in ("nll_loss", "nll_loss2_d", "nll_loss2d") and target.dtype == torch.long:
        yield "cross_entropy", _cross_entropy(node, x, target, given)
    elif node.kind.startswith("binary_cross_entropy") and node.saved("weight") is None:
        if node.saved("pos_weight") is None:
            loss = getattr(functional, node.kind)(x.float(), target.float())
            numbers = [loss, _binary_prior(target.float()), nothing + 1, nothing]
            yield "bce", [*numbers, given.has(target)]
    elif node.kind in _DISTANCES and target.shape == x.shape and len(target) >= _SAMPLES:
        value, prior = _distances(node, x.float(), target.float())
        kind = _DISTANCES[node.kind].__name__.removesuffix("_loss")
        yield kind, [value, prior, nothing + 1, nothing, given.has(target)]


def _distances(node: Node, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss, and that of the mean or median of the targets."""
    options = {
        name: getattr(node.raw, f"_saved_{name}")
        for name in ("beta", "delta")
        if hasattr(node.raw, f"_saved_{name}")
    }
    loss = _DISTANCES[node.kind]
    usual = target.mean(0) if node.kind == "mse_loss" else target.median(0).values
    prior = loss(usual.expand_as(target), target, **options)
    if node.kind == "mse_loss":  # the mean is of this batch: of others it is less near
        prior = prior * len(target) / (len(target) - 1)
    return loss(x, target, **options), prior


def _cross_entropy(node: Node, x: Tensor, target: Tensor, given: Given) -> list[Tensor]:
    classes = x.shape[1] if x.dim() > 1 else x.shape[0]
    weight = node.saved("weight")
    ignored = int(getattr(node.raw, "_saved_ignore_index", -100))
    # An index of -100 is kept in a field without sign.
    ignored = ignored - 2**64 if ignored >= 2**63 else ignored
    kept = target != ignored
    safe = target.where(kept, 0)
    chosen = x.gather(1, safe.unsqueeze(1)).squeeze(1) if x.dim() > 1 else x[safe]
    weights = kept.float() if weight is None else weight.float()[safe] * kept
    total = weights.sum().clamp_min(1e-12)
    value = -(chosen.float().where(kept, 0.0) * weights).sum() / total
    counts = torch.zeros(classes, device=x.device).scatter_add_(
        0, safe.reshape(-1), weights.reshape(-1)
    )
    shares = counts / total
    seen = (counts > 0).sum()
    # A batch has fewer classes, and less equal shares, than the data: Miller and Madow, 1955.
    entropy = torch.special.entr(shares).sum() + (seen - 1) / (2 * kept.sum().clamp_min(1))
    entropy = entropy.clamp_max(math.log(classes))
    return [value, entropy, seen.float(), safe.reshape(-1)[0].float(), given.has(target, kept)]


def _binary_prior(target: Tensor) -> Tensor:
    share = target.mean(dim=0)
    entropy: Tensor = torch.special.entr(share) + torch.special.entr(1 - share)
    return entropy.mean()
