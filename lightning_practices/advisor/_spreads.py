"""The spreads of the features of tabular inputs."""

from typing import NamedTuple

import torch

from lightning_practices.advisor._entries import Entry, inputs_of
from lightning_practices.advisor._observation import Observation, once

_RATIO = 100.0  # healthy programs: up to 7, and principal components
_ROWS = 16  # the fewest that tell a spread
_MOST_ROWS, _MOST_FEATURES = 1024, 1024
# A feature counts whose quartiles are apart by this many standard deviations: 1.35 in a normal
# distribution. Rare words and radial functions, which are near one value mostly, have less.
_QUARTILES = 0.2


class Spreads(NamedTuple):
    """The features with the least and the greatest standard deviation.

    Attributes:
        least: Index of the feature with the least.
        most: Index of the feature with the greatest.
        low: The least.
        high: The greatest.
        gap: Greatest ratio of one spread to the next smaller one. Features in different units
            have a gap; principal components and pixels have spreads of all sizes.
    """

    least: int
    most: int
    low: float
    high: float
    gap: float


@once
def uneven_inputs(seen: Observation) -> list[tuple[Entry, Spreads]]:
    """Return the tabular inputs of first layers whose spreads differ by more than 100.

    Features that are constant, that have two values, or that have one value mostly don't count.
    """
    found = [(entry, _spreads_of(entry)) for entry in inputs_of(seen)]
    return [(entry, spreads) for entry, spreads in found if spreads is not None]


def _spreads_of(entry: Entry) -> Spreads | None:
    tensor = entry.value.tensor
    if tensor is None or tensor.dim() != 2 or not 2 <= tensor.shape[1] <= _MOST_FEATURES:
        return None
    x = entry.rows
    if x is None or len(x) < _ROWS:
        return None
    x = x[:_MOST_ROWS].float()
    if not torch.isfinite(x).all():
        return None
    std = x.std(dim=0)
    lower, upper = torch.quantile(x, torch.tensor([0.25, 0.75], device=x.device), dim=0)
    low, high = x.amin(0), x.amax(0)
    is_binary = ((x == low) | (x == high)).all(dim=0)
    counts = (std > 0) & ~is_binary & (upper - lower > _QUARTILES * std)
    if int(counts.sum()) < 2:
        return None
    index = counts.nonzero()[:, 0]
    kept = std[index]
    if float(kept.amax()) <= _RATIO * float(kept.amin()):
        return None
    ordered = kept.sort().values
    return Spreads(
        int(index[kept.argmin()]), int(index[kept.argmax()]),
        float(kept.amin()), float(kept.amax()),
        float((ordered[1:] / ordered[:-1]).amax()),
    )  # fmt: skip
