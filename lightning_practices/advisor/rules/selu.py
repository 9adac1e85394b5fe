"""SELU without what makes it normalise itself."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import DROPOUTS, LAYERS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._paths import before
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

# Standard deviation of weights times the root of their inputs: 1 by LeCun, 0.58 by torch's default,
# 1.41 by He.
_LECUN = (0.8, 1.2)
_SOURCE = "Klambauer et al., 2017, arXiv:1706.02515"


@rule(
    "LP541", "hint",
    practice="Layers before SELU are initialised by LeCun's scheme",
    measures="the standard deviation of weights before SELU, times the root of their inputs",
    healthy="0.8 to 1.2",
    source=_SOURCE,
)  # fmt: skip
def selu_without_lecun(seen: Observation) -> Iterator[Evidence]:
    found: dict[str, float] = {}
    for call in _selus(seen):
        layer = next(before(call.inputs[0]), None)
        if layer is None or layer.name not in LAYERS or not layer.parameters:
            continue
        weight = seen.weights.get(layer.parameters[0])
        if weight is not None and weight.is_trainable and len(weight.shape) > 1:
            inputs = 1
            for size in weight.shape[1:]:
                inputs *= size
            found[layer.module] = weight.statistics.std * inputs**0.5
    wrong = {name: x for name, x in found.items() if not _LECUN[0] <= x <= _LECUN[1]}
    if wrong:
        yield Evidence(
            "SELU keeps mean 0 and variance 1 if weights have the variance 1 / inputs, and here"
            f" their standard deviation is {min(wrong.values()):.2f} to {max(wrong.values()):.2f}"
            " times that",
            'nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")',
            tuple(wrong),
            {"ratio": min(wrong.values())},
        )


@rule(
    "LP542", "hint",
    practice="SELU goes with alpha dropout, and without batch norm",
    measures="dropout and batch norm right after or before SELU",
    healthy="alpha_dropout, and no batch norm",
    source=_SOURCE,
)  # fmt: skip
def selu_with_dropout_or_norm(seen: Observation) -> Iterator[Evidence]:
    selus = list(_selus(seen))
    for call in seen.step.calls:
        if call.name in ("dropout", "batch_norm") and call.inputs:
            earlier = next(before(call.inputs[0]), None)
            if earlier is not None and earlier.name == "selu":
                yield _evidence(earlier, call)
    for call in selus:
        earlier = next(before(call.inputs[0], DROPOUTS), None)
        if earlier is not None and earlier.name == "batch_norm":
            yield _evidence(call, earlier)


def _evidence(selu: Call, other: Call) -> Evidence:
    better = "nn.AlphaDropout" if other.name == "dropout" else "no norm"
    return Evidence(
        f"{other} is next to {selu}, which normalises by itself: it changes mean and variance",
        f"{better} next to SELU",
        (other.module,),
    )


def _selus(seen: Observation) -> Iterator[Call]:
    return (call for call in seen.step.calls if call.name == "selu" and call.inputs)
