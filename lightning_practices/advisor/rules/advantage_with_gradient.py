"""Advantages that aren't detached in the loss of a policy."""

from collections.abc import Iterator

from lightning_practices.advisor._gradient_paths import parameters_behind
from lightning_practices.advisor._kinds import CLAMPS, PASSED
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._parameters import concerned, optimized
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Call, Value

_LOGARITHMS = frozenset(
    {"log_softmax", "logsumexp", "log", "logsigmoid", "log_sigmoid", "cross_entropy", "nll_loss",
     "nll_loss_nd", "binary_cross_entropy_with_logits"}
)  # fmt: skip
_SCALES = frozenset({"mul", "div"})
_SQUARES = frozenset({"pow", "square", "smooth_l1_loss", "huber_loss", "mse_loss"})


@rule(
    "LP153", "warning",
    practice="An advantage has no gradient in the loss of a policy",
    measures="products of a log-probability with a return minus a value, where gradients reach the"
    " trained parameters of the value, which a regression on the return trains too",
    healthy="(returns - values).detach()",
    source="Mnih et al., 2016, arXiv:1602.01783, algorithm S3: the policy's gradient is that of the"
    " log-probability alone",
)  # fmt: skip
def advantage_with_gradient(seen: Observation) -> Iterator[Evidence]:
    held = optimized(seen).keys()
    found = set()
    for step in seen.steps:
        for call in step.after_layers:
            for advantage, value in _products(step, call):
                names = parameters_behind(value) & held
                if names and call.line not in found:
                    found.add(call.line)
                    yield Evidence(
                        f"{call} multiplies a log-probability with the advantage of {advantage},"
                        " which has a gradient: the loss of the policy moves the value, against its"
                        " own loss",
                        "advantage = (returns - values).detach() in the loss of the policy",
                        concerned(seen, sorted(names)),
                        {"parameters": len(names)},
                    )


def _products(step: Step, call: Call) -> Iterator[tuple[Call, Value]]:
    """Yield the difference that is an advantage, and its value, of a product with a logarithm."""
    if call.name != "mul" or len(call.inputs) != 2:
        return
    for factor, other in (call.inputs, call.inputs[::-1]):
        if not factor.requires_grad or not other.requires_grad:
            continue
        found = _difference(factor)
        if found is None or not any(made.name in _LOGARITHMS for made in other.before()):
            continue
        value = found.inputs[1]
        is_apart = all(made is not found for made in other.before())
        if is_apart and value.depth and _is_regressed(step, found, value):
            yield found, value


def _difference(value: Value) -> Call | None:
    """Return the call of a return minus a value, before a change of scale or a normalisation."""
    while (call := value.call) is not None and call.inputs:
        ends = call.inputs
        if call.name == "sub" and len(ends) == 2 and ends[1].requires_grad:
            if any(one.name == "mean" and ends[0] in one.inputs for one in ends[1].before()):
                value = ends[0]
                continue
            return None if ends[0].requires_grad and not _is_bootstrapped(ends[0]) else call
        if call.name not in PASSED | CLAMPS | _SCALES | {"neg", "sub"} or (
            call.name == "mul" and len([x for x in ends if x.requires_grad]) > 1
        ):
            return None
        value = next((x for x in ends if x.requires_grad), ends[0])
    return None


def _is_bootstrapped(value: Value) -> bool:
    """Return whether something without gradient, as a reward, is added to a value."""
    call = value.maker()
    return call is not None and call.name == "add" and any(not x.requires_grad for x in call.inputs)


def _is_regressed(step: Step, difference: Call, value: Value) -> bool:
    """Return whether a loss draws the value to the return."""
    origin = value.origin()
    for loss in step.losses:
        if loss.kind in REGRESSION and any(
            x.origin() is origin for x in (loss.prediction, loss.target)
        ):
            return True
    return any(user.name in _SQUARES for user in step.users(difference.output))
