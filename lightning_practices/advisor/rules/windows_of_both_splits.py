"""Validation windows of a series that overlap those of the train split."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_READ = 16  # validation samples
_FEWEST = 4  # pairs of windows, and time steps that two windows share
_SHARE = 0.5  # of the validation samples; the ends of a split in healthy programs


@rule(
    "LP341", "warning",
    practice="Windows of a series are split by time",
    measures="the share of the validation windows whose neighbour in the dataset is a training"
    " window that holds the same time steps, shifted",
    healthy="those at the border of the splits; the threshold is 50 %",
    source="Kapoor and Narayanan 2023, leakage and the reproducibility crisis: temporal leakage",
    explained_by=("LP312",),
)  # fmt: skip
def windows_of_both_splits(seen: Observation) -> Iterator[Evidence]:
    train, val = seen.train.samples, seen.validation.samples if seen.validation else None
    if train is None or val is None or train.dataset is not val.dataset:
        return
    ours = set(train.places.tolist())
    places = val.spread(_READ).tolist()
    nears = [next((x for x in (p + 1, p - 1) if x in ours), None) for p in places]
    pairs = [sorted((p, near)) for p, near in zip(places, nears, strict=True) if near is not None]
    read = val.read([place for pair in pairs for place in pair])
    overlapping = [_overlap(*two) for two in zip(read[::2], read[1::2], strict=False)]
    share = sum(overlapping) / (len(overlapping) + len(places) - len(pairs) or 1)
    if len(overlapping) >= _FEWEST and share >= _SHARE:
        yield Evidence(
            f"{share:.0%} of the validation windows that were read overlap a window of the train"
            " split: the model has seen most of what it is tested on",
            "split the series by time before windows are cut, or take the last indices for"
            " validation: Subset(dataset, range(n_train + width, len(dataset)))",
            numbers={"share": share},
        )


def _overlap(first: Any, second: Any) -> bool:
    """Return whether two samples hold the same steps, in the second one a few steps earlier."""
    pairs = zip(_tensors(first), _tensors(second), strict=False)
    return any(_is_shifted(a, b) for a, b in pairs)


def _tensors(sample: Any) -> list[Tensor]:
    arrays = [x for x in tree_leaves(sample) if isinstance(x, Tensor | np.ndarray)]
    return [torch.as_tensor(x) for x in arrays if x.ndim]


def _is_shifted(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    for time in range(min(first.dim(), 2)):  # (time,), (time, features) or (features, time)
        a, b = first.movedim(time, 0), second.movedim(time, 0)
        for shift in range(1, len(a) // 2 + 1):
            kept = a[shift:]
            if len(kept) >= _FEWEST and torch.equal(kept, b[:-shift]) and _varies(kept):
                return True
    return False


def _varies(x: Tensor) -> bool:
    """Return whether steps differ, so that two windows aren't equal by chance."""
    return len(torch.unique(x, dim=0)) >= _FEWEST
