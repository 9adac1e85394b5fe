"""Similarities of pairs whose targets or whose scale are wrong."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from lightning_practices.advisor._entries import targets_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Loss, Value
from lightning_practices.advisor._weighted import weighted_terms

_PRODUCTS = frozenset({"matmul", "mm", "einsum", "linear", "cosine_similarity"})
_NORMS = frozenset({"norm", "linalg_norm", "linalg_vector_norm", "clamp", "add", "sqrt"})
_FEWEST = 16  # pairs
_SHARE = 0.5  # of the columns that are targets; random classes of episodes have 0.63
# The least loss that the scale allows, by log(pairs): 0.03 at a temperature of 0.2, 0.5 at 1.
_FLAT, _RATHER_FLAT = 0.9, 0.35


class _Similarities(NamedTuple):
    """The logits of a cross entropy that are similarities of the samples in pairs.

    Attributes:
        loss: The loss.
        product: The call that multiplies both sides.
        scale: The number by which the product is multiplied; ``None`` if it isn't one.
        targets: The targets of the loss.
    """

    loss: Loss
    product: Call
    scale: float | None
    targets: Tensor


@rule(
    "LP267", "error",
    practice="The positive of a pair is on the diagonal",
    measures="targets of similarities between two outputs for each sample of the batch: constant"
    " ones, and classes of the samples",
    healthy="a target of its own for each row",
    source="Radford et al., 2021, arXiv:2103.00020: labels = arange(n)",
)  # fmt: skip
def targets_of_pairs(seen: Observation) -> Iterator[Evidence]:
    classes = {id(loss): entry for loss, entry in targets_of(seen) if entry.source is not None}
    for found in _similarities(seen):
        targets = found.targets
        is_constant = bool((targets == targets[0]).all())
        is_class = id(found.loss) in classes and len({*targets.tolist()}) < _SHARE * len(targets)
        if is_constant or is_class:
            what = f"all {int(targets[0])}" if is_constant else "the classes of the samples"
            yield Evidence(
                f"the logits of {found.loss.call} are the similarities of {len(targets)} pairs, by"
                f" {found.product}, and its targets are {what}: the positive of row i is in"
                " column i",
                "targets = torch.arange(len(logits), device=logits.device)",
                tuple(filter(None, [layer_of(found.loss.prediction)])),
            )


@rule(
    "LP268", "warning",
    practice="Similarities are divided by a temperature",
    measures="the least loss that cosines can reach at the scale of the logits, by log(pairs)",
    healthy="0.1 at most; the threshold is 0.9",
    source="Chen et al., 2020, arXiv:2002.05709, table 5; Radford et al., 2021, arXiv:2103.00020",
)  # fmt: skip
def flat_similarities(seen: Observation) -> Iterator[Evidence]:
    yield from _too_flat(seen, _FLAT, math.inf)


@rule(
    "LP269", "hint",
    practice="Similarities are divided by a temperature",
    measures="as LP268, for cosines that are the logits",
    healthy="0.1 at most; the threshold is 0.35",
    source="Chen et al., 2020, arXiv:2002.05709, table 5: worse results at a temperature of 1",
)  # fmt: skip
def rather_flat_similarities(seen: Observation) -> Iterator[Evidence]:
    yield from _too_flat(seen, _RATHER_FLAT, _FLAT)


def _too_flat(seen: Observation, low: float, high: float) -> Iterator[Evidence]:
    for found in _similarities(seen):
        count = len(found.targets)
        is_cosine = found.product.name == "cosine_similarity" or all(
            _is_normed(x) for x in found.product.inputs
        )
        if not is_cosine or found.scale is None or len({*found.targets.tolist()}) < count:
            continue
        least = math.log1p((count - 1) * math.exp(-2 * abs(found.scale)))
        share = least / math.log(count)
        if low < share <= high:
            yield Evidence(
                f"the logits of {found.loss.call} are cosines times {found.scale:.3g}: with"
                f" {count} pairs the loss can't fall below {least:.3g}, where chance has"
                f" {math.log(count):.3g}",
                "logits = a @ b.T / 0.1, or a learnt scale that begins at exp(2.66) = 14",
                tuple(filter(None, [layer_of(found.loss.prediction)])),
                {"least": least, "scale": found.scale},
            )


def _similarities(seen: Observation) -> Iterator[_Similarities]:
    for _, loss in losses_seen(seen, {"cross_entropy"}):
        targets, shape = loss.target.tensor, loss.prediction.shape
        if targets is None or targets.is_floating_point() or targets.shape != shape[:1]:
            continue
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < _FEWEST:
            continue
        product, scale = _product(loss.prediction)
        if product is not None:
            yield _Similarities(loss, product, scale, targets)


def _product(logits: Value) -> tuple[Call | None, float | None]:
    """Return the product of two outputs for each sample, and the number that multiplies it."""
    scale: float | None = 1.0
    value = logits.origin()
    while (call := value.call) is not None and call.name not in _PRODUCTS:
        terms = list(weighted_terms(value))
        if len(terms) == 1 and terms[0][0] is not value:
            value, scale = terms[0][0].origin(), scale and scale * terms[0][1]
        elif call.name in ("mul", "div"):  # by a learnt scale
            sides = [x for x in call.inputs if x.shape == value.shape]
            if len(sides) != 1:
                return None, None
            value, scale = sides[0].origin(), None
        else:
            return None, None
    if call is None or len(call.inputs) != 2 or call.parameters:
        return None, None
    first, second = (x.origin() for x in call.inputs)
    count = logits.shape[0]
    is_paired = all(x.is_data and x.depth and x.shape[:1] == (count,) for x in (first, second))
    return (call, scale) if is_paired and first is not second else (None, None)


def _is_normed(value: Value) -> bool:
    """Return whether a value is one that was divided by its norm."""
    call = value.origin().call
    if call is None or call.name not in ("normalize", "div") or not call.inputs:
        return False
    below = call.inputs[-1].maker() if call.name == "div" else None
    return call.name == "normalize" or (below is not None and below.name in _NORMS)
