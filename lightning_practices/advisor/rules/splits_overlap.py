"""Validation samples that are in the train split too."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._observation import Observation, Split
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._samples import digests_of_rows

_SHARE = 0.05  # of the validation samples; healthy programs: 0, or as many as within a split
_NATURAL = 3.0  # times as many as within the train split
_FEWEST = 16  # samples of a split; a graph or two are one dataset under several masks


@rule(
    "LP312", "warning",
    practice="Training and validation have no samples in common",
    measures="share of the validation samples whose hash, or whose index in the same dataset, is"
    " that of a training sample",
    healthy="below 5 %, or as many equal samples within the train split",
    source="Kapoor and Narayanan 2023, leakage and the reproducibility crisis",
)  # fmt: skip
def splits_overlap(seen: Observation) -> Iterator[Evidence]:
    if seen.validation is None or len(seen.validation.loaders) > 1:
        return
    if any(
        loader.batch_size is None and loader.batch_sampler is None
        for loader in seen.validation.loaders
    ):  # a graph, or other wholes, with masks in them
        return
    found = _shared_indices(seen.train, seen.validation)
    found = _equal_samples(seen.train, seen.validation) if found is None else found
    if found is None:
        return
    share, number, what = found
    yield Evidence(
        f"{share:.0%} of {number} validation samples {what}: the validation metric can't tell"
        " overfitting",
        "split once, before anything else: train, val = torch.utils.data.random_split(dataset,"
        " [0.8, 0.2])",
        numbers={"share": share},
    )


_Found = tuple[float, int, str]


def _shared_indices(train: Split, val: Split) -> _Found | None:
    """Return what two selections from one dataset share."""
    a, b = train.samples, val.samples
    if a is None or b is None or a.dataset is not b.dataset or len(a.dataset) < _FEWEST:
        return None
    if not (a.is_selected or b.is_selected) or min(len(a), len(b)) < _FEWEST:
        return None  # a dataset may draw its samples anew, whichever index it gets
    share = float(torch.isin(b.places, a.places).float().mean())
    if share <= _SHARE:
        return None
    return share, len(b), "have the index of a training sample in the same dataset"


def _equal_samples(train: Split, val: Split) -> _Found | None:
    pairs = [(_digests_of_batches(train), _digests_of_batches(val))]
    if train.samples is not None and val.samples is not None:
        pairs.insert(0, (train.samples.digests or [], val.samples.digests or []))
    for ours, theirs in pairs:
        if min(len(ours), len(theirs)) < _FEWEST or len(set(theirs)) < 0.1 * len(theirs):
            continue
        share = _share(theirs, set(ours))
        # Samples from few values are equal by chance, within the train split as well.
        within = 0.0 if _is_rich(train) else 1 - len(set(ours)) / len(ours)
        if share > max(_SHARE, _NATURAL * within):
            return share, len(theirs), "equal a training sample in every value"
    return None


def _share(samples: Sequence[int], known: set[int]) -> float:
    return sum(one in known for one in samples) / len(samples)


def _digests_of_batches(split: Split) -> list[int]:
    return [one for batch in split.batches for one in digests_of_rows(batch.loaded)]


def _is_rich(split: Split) -> bool:
    """Whether a sample has so many fractions that two are never equal by chance."""
    leaves = tree_leaves(split.batches[0].loaded) if split.batches else []
    tensors = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1]
    fractions = [int((x[0] != x[0].round()).sum()) for x in tensors if len(x)]
    return max(fractions, default=0) >= 4
