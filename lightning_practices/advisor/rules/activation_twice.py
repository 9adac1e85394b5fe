"""An output activation of an output activation."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import PROBABILITIES
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import activation, made_by, places, weights_others
from lightning_practices.advisor._rule import Evidence, rule

_AFTER = PROBABILITIES | {"log_softmax", "log_sigmoid", "logsigmoid"}


@rule(
    "LP209", "error",
    practice="An output has one activation",
    measures="softmax or sigmoid of the output of a softmax or sigmoid, after the last layer",
    healthy="none, but for weights of attention",
    source="torch.nn.Softmax: does not work directly with NLLLoss; questions on forums",
)  # fmt: skip
def activation_twice(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    for call in step.after_layers:
        if (
            activation(call) not in _AFTER
            or not call.output.requires_grad
            or not call.output.is_data
            or not call.inputs
        ):
            continue
        first = made_by(call.inputs[0], PROBABILITIES)
        if first is None or weights_others(step, call.output):
            continue
        yield Evidence(
            f"{call} gets the output of {first}, which holds probabilities already: its own output"
            " is nearly the same for all inputs",
            f"remove {activation(first)}",
            tuple(dict.fromkeys([*places(seen, first), *places(seen, call)])),
        )
