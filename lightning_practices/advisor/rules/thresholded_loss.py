"""A term of the loss that is computed from decisions, which have no gradient."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import terms_of
from lightning_practices.advisor._trace import Call, Value

_DECISIONS = frozenset(
    {"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "argmax", "argmin",
     "round", "sign", "heaviside", "bernoulli"}
)  # fmt: skip


@rule(
    "LP264", "error",
    practice="Each term of a loss has a gradient",
    measures="terms of the loss without a gradient that are computed from thresholded or rounded"
    " outputs",
    healthy="none",
    source="questions on forums about a Dice loss of thresholded masks that doesn't improve",
)  # fmt: skip
def thresholded_loss(seen: Observation) -> Iterator[Evidence]:
    for root in (one for one in seen.step.roots if one.requires_grad):
        for term in terms_of(root, reductions=False):
            decision = None if term.value.requires_grad else _decision(term.value)
            if decision is not None:
                yield Evidence(
                    f"a term of the loss is computed from {decision}, which has no gradient:"
                    f" {_name(term.value)} changes the loss and trains nothing",
                    "compute the term from the probabilities: a soft Dice of sigmoid(logits)",
                    tuple(filter(None, [layer_of(decision.inputs[0])])),
                )
                return


def _decision(value: Value) -> Call | None:
    """Return the decision that ends the gradient of what a value is computed from."""
    waiting, seen = [value], set()
    while waiting:
        call = waiting.pop(0).call
        if call is None or id(call) in seen:
            continue
        seen.add(id(call))
        if call.name in _DECISIONS and call.inputs and call.inputs[0].requires_grad:
            return call
        waiting += [x for x in call.inputs if not x.requires_grad]  # not behind detach
    return None


def _name(value: Value) -> str:
    return str(value.call) if value.call is not None else "it"
