"""Tabular features whose spreads differ by orders of magnitude."""

from collections.abc import Iterator

from lightning_practices.advisor._entries import Entry
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._spreads import Spreads, uneven_inputs

_HIGH = 5.0  # the greatest spread; smaller features beside one near 1 are merely ignored
_GAP = 100.0  # between one spread and the next; healthy programs: up to 2.2


@rule(
    "LP304", "warning",
    practice="Features have like spreads",
    measures="ratio of the standard deviations of the features of a tabular input, without"
    " constant, binary and sparse ones",
    healthy="below 100; measured up to 7",
    source="LeCun et al. 1998, efficient backprop: inputs should have about the same covariance",
)  # fmt: skip
def feature_spreads(seen: Observation) -> Iterator[Evidence]:
    for entry, found in uneven_inputs(seen):
        if _is_harmful(entry, found):
            yield _evidence(entry, found)


@rule(
    "LP305", "hint",
    practice="Features have like spreads",
    measures="the same, where no spread is large",
    healthy="below 100, or of all sizes, as in principal components",
    source="LeCun et al. 1998, efficient backprop",
)  # fmt: skip
def feature_spreads_below_one(seen: Observation) -> Iterator[Evidence]:
    for entry, found in uneven_inputs(seen):
        if not _is_harmful(entry, found):
            yield _evidence(entry, found)


def _is_harmful(entry: Entry, found: Spreads) -> bool:
    # Features that the step computes, such as means over neighbours, may be nearly constant.
    return found.high > _HIGH or (found.gap > _GAP and entry.source is not None)


def _evidence(entry: Entry, found: Spreads) -> Evidence:
    return Evidence(
        f"{entry} goes into {entry.call} with a standard deviation of {found.high:.3g} in feature"
        f" {found.most} and of {found.low:.3g} in feature {found.least}: the first outweighs the"
        " second, and no learning rate suits both",
        "standardise each feature by the train split: x = (x - mean) / std",
        (entry.call.module,) if entry.call.module else (),
        {"ratio": found.high / found.low},
    )
