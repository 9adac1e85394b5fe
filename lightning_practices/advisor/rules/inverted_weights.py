"""Weights of classes that favour the large ones, and targets that are smoothed away."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._entries import targets_of
from lightning_practices.advisor._labels import all_labels, class_targets
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Loss, Value

_FEWEST = 100  # samples
_IMBALANCE, _SPREAD = 3.0, 2.0  # of the classes' sizes, and of their weights
_ALIKE = 0.9  # correlation of the logarithms
_NEAR = 1.5  # of pos_weight and positives / negatives
_SMOOTHED = 0.5  # usual: 0.1


@rule(
    "LP331", "warning",
    practice="Weights of a loss favour the small classes",
    measures="the correlation between the logarithms of the weights and of the sizes of the"
    " classes; pos_weight beside positives / negatives",
    healthy="negative, or equal weights; pos_weight near negatives / positives",
    source="Johnson and Khoshgoftaar 2019, survey on deep learning with class imbalance;"
    " torch.nn.BCEWithLogitsLoss: pos_weight",
)  # fmt: skip
def inverted_weights(seen: Observation) -> Iterator[Evidence]:
    sources = {one.source for one in class_targets(seen)}
    for loss, entry in targets_of(seen):
        labels = all_labels(seen, entry) if entry.source in sources else None
        if labels is None or len(labels) < _FEWEST:
            continue
        positive = _tensor(loss.call.get(6, "pos_weight")) if loss.kind == "bce_logits" else None
        weights = _tensor(loss.call.get(2, "weight")) if loss.kind != "bce_logits" else None
        found = None
        if weights is not None:
            found = _favoured(weights, labels)
        elif positive is not None and positive.numel() == 1:
            found = _positives(float(positive), float((labels == 1).float().mean()))
        if found is not None:
            yield Evidence(
                f"{loss.call} favours the large classes: {found}",
                "weight=counts.sum() / (len(counts) * counts)" if positive is None
                else "pos_weight=negatives / positives",
                _place(loss),
            )  # fmt: skip


@rule(
    "LP248", "warning",
    practice="Smoothed targets keep most of their weight on the label",
    measures="label_smoothing of cross_entropy",
    healthy="0 to 0.3",
    source="Szegedy et al., 2016, arXiv:1512.00567: 0.1",
)  # fmt: skip
def smoothed_away(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"cross_entropy"}):
        share = float(loss.call.get(7, "label_smoothing", 0.0))
        if share >= _SMOOTHED:
            yield Evidence(
                f"{loss.call} has label_smoothing={share:g}, the share of the target that is spread"
                f" over all classes: {1 - share:.0%} is left for the label",
                f"label_smoothing={1 - share if share > 0.8 else 0.1:.2g}",
                _place(loss),
                {"smoothing": share},
            )


def _favoured(weights: Tensor, labels: Tensor) -> str | None:
    weights = weights.detach().cpu().double().flatten()
    counts = torch.bincount(labels.cpu().long().clamp(min=0), minlength=len(weights)).double()
    if len(counts) != len(weights) or len(weights) < 2 or bool((weights <= 0).any()):
        return None
    if bool((counts == 0).any()) or counts.max() / counts.min() < _IMBALANCE:
        return None
    if weights.max() / weights.min() < _SPREAD:
        return None
    alike = float(torch.corrcoef(torch.stack([weights.log(), counts.log()]))[0, 1])
    if alike < _ALIKE:
        return None
    most, least = int(counts.argmax()), int(counts.argmin())
    return (
        f"class {most} has {counts[most]:.0f} samples and weight {weights[most]:.3g}, class {least}"
        f" has {counts[least]:.0f} and {weights[least]:.3g}"
    )


def _positives(weight: float, share: float) -> str | None:
    if not 0 < share < 1 or weight <= 0:
        return None
    ratio = share / (1 - share)
    is_uneven = max(ratio, 1 / ratio) >= _IMBALANCE
    if not is_uneven or abs(math.log(weight / ratio)) > math.log(_NEAR):
        return None
    return f"pos_weight={weight:.3g} is near positives / negatives, {ratio:.3g}"


def _tensor(value: object) -> Tensor | None:
    return value.tensor if isinstance(value, Value) else None


def _place(loss: Loss) -> tuple[str, ...]:
    return tuple(filter(None, [layer_of(loss.prediction)]))
