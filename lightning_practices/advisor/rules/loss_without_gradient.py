"""A loss that no gradient leaves: detached, under no_grad, a constant, or after argmax or round."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_STEPS = frozenset(
    {"argmax", "argmin", "round", "floor", "ceil", "trunc", "sign", "heaviside", "bernoulli",
     "multinomial", "gt", "lt", "ge", "le", "__gt__", "__lt__", "__ge__", "__le__", "greater",
     "less", "greater_equal", "less_equal"}
)  # fmt: skip
_INDICES = frozenset({"max", "min", "topk", "sort", "mode", "median"})  # their second output
_DETACHED = frozenset({"detach", "__get__"})


@rule(
    "LP225", "error",
    practice="A loss that requires a gradient has a graph",
    measures="whether a way with a gradient leads from the step's loss to a parameter",
    healthy="one does in each step that has an optimizer",
    source="requires_grad_() of a loss, which hides that no gradient reaches the parameters",
)  # fmt: skip
def gradient_of_the_loss_alone(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    is_asked = any(root.requires_grad for root in step.roots)
    if not is_asked or not seen.optimizers or any(_is_trained(root) for root in step.roots):
        return
    cut = next((call for root in step.roots for call in root.before() if _cuts(call)), None)
    what = "it is made of constants, such as numbers of item() or arrays"
    if cut is not None:
        what = f"{cut} returns a tensor without gradient"
    last = [call.output for call in step.calls if call.is_layer][-1:]
    place = layer_of(cut.inputs[0] if cut is not None else last[0]) if cut or last else ""
    yield Evidence(
        f"the step's loss requires a gradient, but none leads to a parameter: {what}. Nothing is"
        " trained",
        "compute the loss from the module's output itself, and leave out requires_grad_(),"
        " detach(), item() and argmax",
        (place,) if place else (),
    )


@rule(
    "LP226", "error",
    practice="Predictions reach the loss by functions with a gradient",
    measures="rounding, thresholds and argmax between the prediction and the loss",
    healthy="none; a straight-through estimator adds its input again",
    source="questions on forums about gradients of zero; TheDeepChecker (2023)",
)  # fmt: skip
def prediction_in_steps(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen):
        value = loss.prediction.origin()
        call = value.call
        if call is None or not call.inputs or not call.inputs[0].requires_grad:
            continue
        is_index = call.name in _INDICES and value is not call.output
        if (call.name in _STEPS or is_index) and any(_is_trained(root) for root in step.roots):
            place = layer_of(value)
            yield Evidence(
                f"{loss.call} gets the output of {call}, which has no gradient: the loss trains"
                " nothing",
                f"leave {call.name} out of the loss, and use it for metrics only",
                (place,) if place else (),
            )


@rule(
    "LP227", "warning",
    practice="A loss's prediction isn't detached",
    measures="detach() or .data between the layers and a loss whose target has no gradient either",
    healthy="one of both has a gradient",
    source="questions on forums about a part of a loss that doesn't fall",
)  # fmt: skip
def detached_prediction(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen):
        if loss.prediction.requires_grad or loss.target.requires_grad or loss.target.depth:
            continue
        if not any(_is_trained(root) for root in step.roots):
            continue
        cut = _detached(loss.prediction)
        if cut is not None:
            place = layer_of(cut.inputs[0])
            yield Evidence(
                f"{loss.call} gets a prediction that {cut} has detached: this part of the loss"
                " trains nothing",
                "leave out detach() or .data, or the whole part",
                (place,) if place else (),
            )


@rule(
    "LP228", "hint",
    practice="Targets need no gradient",
    measures="requires_grad of targets that come from the batch",
    healthy="False",
    source="torch.autograd mechanics: setting requires_grad",
)  # fmt: skip
def target_with_gradient(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen):
        target = loss.target
        call = target.call
        if target.requires_grad and not target.depth and (
            (target.is_data and call is None) or (call is not None and call.name == "requires_grad")
        ):  # fmt: skip
            yield Evidence(
                f"the target of {loss.call} requires a gradient, which costs memory",
                "leave out requires_grad_() of the target",
            )


def _is_trained(root: Value) -> bool:
    """Return whether a gradient leads from a value to a parameter, or may do so."""
    waiting, seen = [root], set()
    while waiting:
        value = waiting.pop()
        if not value.requires_grad or id(value) in seen:
            continue
        seen.add(id(value))
        if value.call is None:
            if value is not root:  # a parameter, or a tensor whose origin isn't known
                return True
            continue
        if value.call.name.endswith("Backward"):  # an autograd function
            return True
        waiting += value.call.inputs
    return False


def _cuts(call: Call) -> bool:
    """Return whether a call takes values with a gradient and makes one without."""
    is_cut = any(x.requires_grad for x in call.inputs)
    return is_cut and not any(x.requires_grad for x in call.outputs)


def _detached(value: Value) -> Call | None:
    """Return the call that detached a prediction, if no layer came after."""
    for call in value.before():
        if call.is_layer:
            return None
        if call.name in _DETACHED and _cuts(call):
            return call
    return None
