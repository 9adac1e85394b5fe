"""Classes of very different sizes in a loss that doesn't weight them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._entries import Entry, targets_of
from lightning_practices.advisor._labels import all_labels, class_targets
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Loss

_RATIO = 20.0  # of the largest to the smallest class; healthy programs: up to 9
_FEWEST = 100  # samples


@rule(
    "LP324", "warning",
    practice="Losses weight classes of very different sizes",
    measures="samples of the largest class for each of the smallest, as the loader draws them",
    healthy="below 20, or a loss with weight, pos_weight or reduction='none'",
    source="Johnson and Khoshgoftaar 2019, survey on deep learning with class imbalance",
)  # fmt: skip
def imbalance(seen: Observation) -> Iterator[Evidence]:
    targets = class_targets(seen)
    for loss, entry in targets_of(seen):
        if entry.source not in {one.source for one in targets} or _is_weighted(loss):
            continue
        labels = _drawn_labels(seen, entry)
        if labels is None or len(labels) < _FEWEST:
            continue
        classes, counts = torch.unique(labels, return_counts=True)
        least, most = int(counts.amin()), int(counts.amax())
        # The smallest class may be as large as two standard deviations of its count allow.
        is_sample = len(labels) < len(seen.train.samples or ())
        surely = least + (2 * (least + 1) ** 0.5 if is_sample else 0)
        if len(classes) < 2 or most <= _RATIO * surely:
            continue
        common, rare = classes[counts.argmax()].item(), classes[counts.argmin()].item()
        option = "pos_weight" if loss.kind == "bce_logits" else "weight"
        yield Evidence(
            f"{loss.call} weights all samples alike, and the loader draws class {common:g} {most}"
            f" times for {least} times class {rare:g}: the model may never predict the latter",
            f"{option}=counts.sum() / (len(counts) * counts) in the loss, or"
            " torch.utils.data.WeightedRandomSampler in the loader"
            if option == "weight"
            else "pos_weight=negatives / positives in the loss, or"
            " torch.utils.data.WeightedRandomSampler in the loader",
            (loss.call.module,) if loss.call.module else (),
            {"ratio": most / least},
        )


def _drawn_labels(seen: Observation, entry: Entry) -> Tensor | None:
    """Return labels with the shares that the loader draws."""
    labels = all_labels(seen, entry)
    if labels is not None:
        return labels
    samples = seen.train.samples
    if samples is not None and not samples.is_shuffled:
        return None  # the first batches of a sorted dataset tell nothing of its shares
    return torch.cat([x.flatten() for x in entry.tensors])


def _is_weighted(loss: Loss) -> bool:
    call = loss.call
    weights = [call.get(2, "weight"), call.kwargs.get("pos_weight")]
    if any(one is not None for one in weights) or call.kwargs.get("reduction") == "none":
        return True  # a focal loss, or weights of samples
    # A prior that is added to the logits balances too.
    maker = loss.prediction.maker()
    if maker is None or maker.name not in ("add", "__add__", "sub", "__sub__", "__radd__"):
        return False
    return any(not x.is_data and x.origin().parameter is None for x in maker.inputs)
