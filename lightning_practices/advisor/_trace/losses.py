"""The losses among the calls of a step."""

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_practices.advisor._trace.calls import Call, Value

# The kind of each of torch's losses that has a prediction and a target as its first arguments.
LOSSES = {
    "cross_entropy": "cross_entropy",
    "nll_loss": "nll",
    "nll_loss_nd": "nll",
    "binary_cross_entropy": "bce",
    "binary_cross_entropy_with_logits": "bce_logits",
    "mse_loss": "mse",
    "l1_loss": "l1",
    "smooth_l1_loss": "smooth_l1",
    "huber_loss": "huber",
    "kl_div": "kl",
    "poisson_nll_loss": "poisson",
    "gaussian_nll_loss": "gaussian",
    "soft_margin_loss": "margin",
    "multi_margin_loss": "margin",
    "multilabel_margin_loss": "margin",
    "multilabel_soft_margin_loss": "margin",
    "hinge_embedding_loss": "margin",
    "ctc_loss": "ctc",
}
REGRESSION = frozenset({"mse", "l1", "smooth_l1", "huber"})
CLASSES = frozenset({"cross_entropy", "nll"})

_PREDICTIONS = ("input", "log_probs")  # names of the first argument of torch's losses
_TARGETS = ("target", "targets")
_DIFFERENCES = frozenset({"sub", "__sub__", "__rsub__", "rsub"})
_DISTANCES = {"pow": "mse", "__pow__": "mse", "square": "mse", "abs": "l1", "__abs__": "l1",
              "cosh": "huber",
              "norm": "mse", "linalg_norm": "mse", "linalg_vector_norm": "mse"}  # fmt: skip
_PRODUCTS = frozenset({"mul", "__mul__"})


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss that reaches the value that a step differentiates.

    Attributes:
        kind: ``"cross_entropy"``, ``"nll"``, ``"bce"``, ``"bce_logits"``, ``"mse"``, ``"l1"``,
            ``"smooth_l1"``, ``"huber"``, ``"kl"``, ``"poisson"``, ``"gaussian"``, ``"margin"`` or
            ``"ctc"``.
        call: The call; of one that is written out, that of the difference.
        prediction: What the model says. Where the arguments of a distance can be in either order,
            the one with a gradient.
        target: What it should say.
        is_written_out: Whether it is composed of a difference and a square, absolute value or norm.
    """

    kind: str
    call: Call
    prediction: Value
    target: Value
    is_written_out: bool = False


def losses_of(roots: Iterable[Value]) -> list[Loss]:
    """Return the losses among the calls that ``roots`` depend on, in the order of the calls.

    Args:
        roots: The values that a step differentiates.
    """
    roots = list(roots)
    calls = {id(call): call for root in roots for call in root.before()}
    found = [loss for call in calls.values() if (loss := _of_torch(call)) is not None]
    found += [loss for call in after_layers(roots) if (loss := _written_out(call)) is not None]
    return sorted(found, key=lambda loss: loss.call.index)


def after_layers(roots: Iterable[Value]) -> list[Call]:
    """Return the calls between the last layers with parameters and ``roots``, the first first."""
    waiting, seen = list(roots), dict[int, Call]()
    while waiting:
        call = waiting.pop().call
        if call is None or id(call) in seen or call.is_layer:
            continue
        seen[id(call)] = call
        waiting += call.inputs
    return sorted(seen.values(), key=lambda call: call.index)


def _of_torch(call: Call) -> Loss | None:
    """Return the loss that a call of one of torch's losses is."""
    if call.name not in LOSSES:
        return None
    kind = LOSSES[call.name]
    prediction, target = (
        next((x for name in names if (x := call.get(place, name)) is not None), None)
        for place, names in enumerate((_PREDICTIONS, _TARGETS))
    )
    if not isinstance(prediction, Value) or not isinstance(target, Value):
        return None
    if kind in REGRESSION and target.requires_grad and not prediction.requires_grad:
        prediction, target = target, prediction
    return Loss(kind, call, prediction, target)


def _written_out(distance: Call) -> Loss | None:
    """Return the loss that a distance between a prediction and a target is part of."""
    if not distance.inputs:
        return None
    kind = _DISTANCES.get(distance.name)
    if distance.name in ("pow", "__pow__") and distance.get(1, "exponent") != 2:
        kind = None
    if distance.name in _PRODUCTS and len(distance.inputs) == 2:
        kind = "mse" if distance.inputs[0] is distance.inputs[1] else None
    difference = distance.inputs[0].maker()
    if kind is None or difference is None or difference.name not in _DIFFERENCES:
        return None
    ends = difference.inputs
    if len(ends) != 2 or ends[0].requires_grad == ends[1].requires_grad:
        return None
    target, prediction = sorted(ends, key=lambda value: value.requires_grad)
    if not (prediction.depth and prediction.is_data and target.is_data):
        return None  # such as the distance to a centre, which is a parameter
    return Loss(kind, difference, prediction, target, is_written_out=True)
