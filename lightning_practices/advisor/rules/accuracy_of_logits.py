"""Logits that a metric compares with the threshold of probabilities."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._parts import Part, is_within, parts_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_COMPARISONS = frozenset({"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal"})
_THRESHOLD = 0.5


@rule(
    "LP664", "warning",
    practice="Logits are compared with 0, and probabilities with 0.5",
    measures="comparisons with 0.5, and rounding, of outputs that binary cross entropy with logits"
    " takes, where the loss doesn't depend on them",
    healthy="a threshold of 0, or a sigmoid before",
    source="torch.nn.BCEWithLogitsLoss: this loss combines a Sigmoid layer and the BCELoss;"
    " questions on forums about an accuracy that is too low",
)  # fmt: skip
def accuracy_of_logits(seen: Observation) -> Iterator[Evidence]:
    logits = [
        (layer_of(loss.prediction), parts_of(loss.prediction))
        for step in seen.steps
        for loss in step.losses
        if loss.kind == "bce_logits" and _is_layer(loss.prediction)
    ]
    for step in (seen.validation_step, seen.step):
        call = None if step is None else _thresholded(seen, step, logits)
        if call is not None:
            how = "rounds" if call.name == "round" else "compares with 0.5"
            yield Evidence(
                f"{call} {how} logits, on which the loss acts by a sigmoid: 0.5 is a probability"
                " of 0.62, so that the metric isn't that of the usual threshold",
                "logits > 0, or logits.sigmoid() > 0.5",
                tuple(filter(None, [layer_of(call.inputs[0])])),
            )
            return


def _thresholded(
    seen: Observation, step: Step, logits: list[tuple[str, tuple[Part, ...]]]
) -> Call | None:
    used = {id(call) for root in step.roots for call in root.before()} if step is seen.step else ()
    for call in step.calls:
        if not call.inputs or not _is_threshold(call) or id(call) in used:
            continue
        value = call.inputs[0]
        layer, parts = layer_of(value), parts_of(value)
        if _is_layer(value) and any(
            layer == one and is_within(parts, taken) for one, taken in logits
        ):
            return call
    return None


def _is_threshold(call: Call) -> bool:
    if call.name == "round":
        return not call.get(1, "decimals", 0)
    name = call.name.strip("_")
    return name in _COMPARISONS and len(call.args) == 2 and call.args[1] == _THRESHOLD


def _is_layer(value: Value) -> bool:
    maker = value.maker()
    return maker is not None and maker.is_layer
