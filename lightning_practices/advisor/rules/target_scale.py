"""Regression targets that aren't scaled."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import NORMS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen, makers
from lightning_practices.advisor._rule import Evidence, rule

_SPREAD = 10.0  # standard deviation; 0.2 to 2 in healthy programs
_OWN = 0.1  # of the targets' spread, from which on the outputs are in their scale already


@rule(
    "LP223", "warning",
    practice="Regression targets have a standard deviation near 1",
    measures="the standard deviation of the targets of squared errors",
    healthy="0.2 to 2; the threshold is 10, with outputs that spread over less than a tenth of it",
    source="LeCun et al. (1998), Efficient backprop, on scaling; UMLAUT (2021)",
)  # fmt: skip
def target_scale(seen: Observation) -> Iterator[Evidence]:
    yield from _wide(seen, "mse", "gradients grow with the spread")


@rule(
    "LP224", "hint",
    practice="Regression targets have a standard deviation near 1",
    measures="the standard deviation of the targets of absolute and Huber errors",
    healthy="0.2 to 2; the threshold is 10, with outputs that spread over less than a tenth of it",
    source="LeCun et al. (1998), Efficient backprop, on scaling",
)  # fmt: skip
def target_scale_of_bounded_gradients(seen: Observation) -> Iterator[Evidence]:
    for kind in ("l1", "smooth_l1", "huber"):
        yield from _wide(seen, kind, "the output needs many steps to get there")


def _wide(seen: Observation, kind: str, consequence: str) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {kind}):
        target, prediction = loss.target.tensor, loss.prediction.tensor
        found = makers(loss.prediction)
        if target is None or prediction is None or target.numel() < 2 or target.is_complex():
            continue
        if not found or not all(call.is_layer or call.name in NORMS for call in found):
            continue  # such as an output that is scaled back
        spread, own = float(target.float().std()), float(prediction.float().std())
        if spread > _SPREAD and not own > _OWN * spread:
            place = layer_of(loss.prediction)
            yield Evidence(
                f"the targets of {loss.call} have mean {float(target.float().mean()):.3g} and"
                f" standard deviation {spread:.3g}, the outputs {own:.2g}: {consequence}",
                "target = (target - mean) / std, with both of the train split; scale predictions"
                " back",
                (place,) if place else (),
                {"std": spread},
            )
