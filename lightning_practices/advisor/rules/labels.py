"""Labels that tell nothing: constant, sorted into batches of one class, or given away."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._entries import Entry, inputs_of, targets_of
from lightning_practices.advisor._labels import all_labels, class_targets
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_FEWEST = 32  # targets that tell that they are constant
_CHANCE = 1e-6  # probability of batches as pure as those seen, if samples were drawn at random
_BATCH = 4  # samples of a batch, at least


@rule(
    "LP317", "warning",
    practice="Training batches hold several classes",
    measures="the probability that random batches hold as few classes as those read",
    healthy="above 1e-6",
    source="Bengio 2012, practical recommendations for gradient-based training: shuffle",
)  # fmt: skip
def batches_of_one_class(seen: Observation) -> Iterator[Evidence]:
    for entry in class_targets(seen):
        batches = [x.flatten() for x in entry.tensors if x.numel() >= _BATCH]
        labels = all_labels(seen, entry, even_if_weighted=True)
        if not batches:
            continue
        labels = torch.cat(batches) if labels is None else labels
        pure = [x for x in batches if bool((x == x[0]).all())]
        shares = torch.unique(labels, return_counts=True)[1].double() / len(labels)
        # Logarithms, as the powers of large batches are below the least number.
        log_chance = sum(float((len(x) * shares.log()).logsumexp(0)) for x in pure)
        if len(shares) < 2 or len(pure) < 0.75 * len(batches) or log_chance > math.log(_CHANCE):
            continue
        samples = seen.train.samples
        is_sequential = samples is not None and not samples.is_shuffled
        why = (
            "the train loader doesn't shuffle, and the labels are sorted"
            if is_sequential
            else ("samples of a class come together")
        )
        yield Evidence(
            f"{len(pure)} of {len(batches)} training batches hold one of {len(shares)} classes"
            f" alone: {why}. Each step unlearns the others",
            "DataLoader(train_dataset, shuffle=True)",
            numbers={"batches of one class": len(pure) / len(batches)},
        )


@rule(
    "LP319", "warning",
    practice="Targets vary",
    measures="the distinct values among the targets of a loss that come from the batch",
    healthy="two and more",
    source="Islam et al. 2019, a comprehensive study on deep learning bug characteristics",
    explained_by=("LP204", "LP205", "LP344"),
)  # fmt: skip
def constant_targets(seen: Observation) -> Iterator[Evidence]:
    for loss, entry in targets_of(seen):
        values = torch.cat([x.flatten() for x in entry.tensors])
        if entry.source is None or len(values) < _FEWEST or not _is_constant(values):
            continue
        labels = all_labels(seen, entry, even_if_weighted=True)
        values = values if labels is None else labels
        if not _is_constant(values):
            continue
        others = [x for _, x in targets_of(seen) if x is not entry and x.source != entry.source]
        if loss.kind not in ("cross_entropy", "nll", "bce", "bce_logits") and (
            others or float(values[0]) == 0
        ):
            continue  # a residual that has to vanish
        yield Evidence(
            f"all {values.numel()} targets of {loss.call} that were read are {float(values[0]):g}:"
            " there is nothing to learn",
            "look at how the targets are read and joined to the samples",
            numbers={"target": float(values[0])},
        )


@rule(
    "LP320", "warning",
    practice="No feature gives the target away",
    measures="features of a tabular input that equal the target in every sample",
    healthy="none",
    source="Kaufman et al. 2012, leakage in data mining",
)  # fmt: skip
def target_among_features(seen: Observation) -> Iterator[Evidence]:
    for entry in inputs_of(seen):
        x = entry.rows
        if entry.source is None or x is None or x.dim() != 2 or x.shape[1] < 2:
            continue
        for _, target in targets_of(seen):
            y = _as_column(target, len(x))
            if y is None or target.source == entry.source:
                continue
            same = (x.double() == y).all(dim=0) | _tells_class(x.double(), y)
            for index in same.nonzero()[:, 0].tolist()[:1]:
                yield Evidence(
                    f"feature {index} of {entry}, the input of {entry.call}, tells the target of"
                    f" {target.call} in all {len(x)} samples read: the model learns to copy it",
                    f"remove it: x = np.delete(x, {index}, axis=1)",
                    (entry.call.module,) if entry.call.module else (),
                )


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def _as_column(target: Entry, length: int) -> Tensor | None:
    """Return a target of one varying value a sample, shape (length, 1)."""
    if target.source is None or not all(x.dim() in (1, 2) for x in target.tensors):
        return None
    if not all(x.dim() == 1 or x.shape[1] == 1 for x in target.tensors):
        return None
    y = torch.cat([x.reshape(-1, 1) for x in target.tensors])
    if len(y) != length or length < _FEWEST or bool((y == y[0]).all()):
        return None
    return y.double()


def _tells_class(x: Tensor, y: Tensor) -> Tensor:
    """Whether each feature is a class label that was shifted and scaled, as by a scaler."""
    is_label = bool((y == y.round()).all()) and len(torch.unique(y)) <= 20 and x.shape[1] >= 4
    if not is_label:
        return torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    first, second = x - x.mean(0), y - y.mean()
    product = (first * second).sum(0)
    norms = (first.square().sum(0) * second.square().sum()).sqrt()
    return product.abs() > (1 - 1e-6) * norms.clamp(min=1e-300)
