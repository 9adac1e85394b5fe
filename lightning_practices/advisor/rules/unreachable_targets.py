"""Targets that the output's activation can't reach."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import losses_seen, makers, places, reach
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION

_SHARE = 0.01  # of the targets; 0 in healthy programs
_SLACK = 0.01  # of the targets' standard deviation, for rounding and interpolation


@rule(
    "LP214", "error",
    practice="The output can reach its targets",
    measures="the share of the targets outside the range of the output's activation",
    healthy="0 %; the threshold is 1 %",
    source="UMLAUT (2021); TheDeepChecker (2023): an output layer that doesn't cover the labels",
)  # fmt: skip
def unreachable_targets(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, REGRESSION):
        target, found = loss.target.tensor, makers(loss.prediction)
        low, high = reach(loss.prediction)
        if target is None or not found or target.numel() < 2 or target.is_complex():
            continue
        wide = target.float()
        slack = _SLACK * float(wide.std())
        outside = ((wide < low - slack) | (wide > high + slack)).float().mean().item()
        if outside <= _SHARE:
            continue
        yield Evidence(
            f"the output of {found[0]} is between {low:g} and {high:g}, but {outside:.0%} of the"
            f" targets of {loss.call} are outside: they are from {float(wide.min()):.3g} to"
            f" {float(wide.max()):.3g}",
            "remove the activation after the last layer, or scale the targets into its range",
            places(seen, found[0]),
            {"share": outside},
        )
