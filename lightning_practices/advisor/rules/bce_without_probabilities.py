"""Binary cross entropy of outputs that aren't probabilities."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import NORMS, RECTIFIERS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import losses_seen, makers, places
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_OTHERS = frozenset(
    {"tanh", "hardtanh", "softsign", "leaky_relu", "elu", "gelu", "silu", "softplus", "log_softmax",
     "log_sigmoid", "logsigmoid", "clamp", "clip", "clamp_min"}
)  # fmt: skip


@rule(
    "LP203", "error",
    practice="Binary cross entropy gets probabilities",
    measures="the function that made the first argument of binary_cross_entropy",
    healthy="sigmoid, softmax, or arithmetic such as means, products and 1 - p",
    source="torch.nn.BCELoss: the input must be between 0 and 1; TheDeepChecker (2023)",
)  # fmt: skip
def bce_without_probabilities(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"bce"}):
        found = makers(loss.prediction)
        if not found or not all(_is_unbounded(call) for call in found):
            continue
        maker, last = found[0], loss.prediction.maker()
        cut = ""
        if last is not None and last is not maker and last.name in ("clamp", "clip"):
            cut = f"; {last} stops the gradient of all outputs outside of 0 to 1"
        yield Evidence(
            f"binary_cross_entropy ({loss.call.line}) gets the output of {maker}, which isn't"
            f" between 0 and 1 by itself{cut}",
            "use nn.BCEWithLogitsLoss() on the output of the last linear layer, without activation",
            places(seen, maker),
        )
    for call, maker in _complements(seen.step):
        yield Evidence(
            f"{call} takes 1 minus the output of {maker} for a probability, but that isn't between"
            " 0 and 1 by itself",
            "use nn.BCEWithLogitsLoss() on the output of the last linear layer, without activation",
            places(seen, maker),
        )


def _complements(step: Step) -> Iterator[tuple[Call, Call]]:
    """Yield each log(1 - p) of outputs that aren't probabilities: the log, and what made p."""
    for call in step.after_layers:
        for inner in makers(call.inputs[0])[:1] if call.name == "log" else ():
            is_complement = inner.name in ("__rsub__", "rsub") and 1 in inner.args
            found = makers(inner.inputs[0]) if is_complement else []
            if call.output.requires_grad and found and all(map(_is_unbounded, found)):
                yield call, found[0]


def _is_unbounded(call: Call) -> bool:
    return call.is_layer or call.name in NORMS | RECTIFIERS | _OTHERS
