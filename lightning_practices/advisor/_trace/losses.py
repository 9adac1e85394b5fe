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

_DIFFERENCES = frozenset({"sub", "__sub__", "__rsub__", "rsub"})
_DISTANCES = {"pow": "mse", "__pow__": "mse", "square": "mse", "abs": "l1", "__abs__": "l1"}
_PRODUCTS = frozenset({"mul", "__mul__"})
_MEANS = frozenset({"mean", "sum", "nanmean", "nansum"})


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss that reaches the value that a step differentiates.

    Attributes:
        kind: ``"cross_entropy"``, ``"nll"``, ``"bce"``, ``"bce_logits"``, ``"mse"``, ``"l1"``,
            ``"smooth_l1"``, ``"huber"``, ``"kl"``, ``"poisson"``, ``"gaussian"``, ``"margin"`` or
            ``"ctc"``.
        call: The call; of one that is written out, that of the difference.
        prediction: What the model says.
        target: What it should say.
        is_written_out: Whether it is composed of a difference, a square or absolute value, and a
            mean or sum.
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
    calls = {id(call): call for root in roots for call in root.before()}
    found = []
    for call in calls.values():
        if call.name in LOSSES and len(call.inputs) >= 2:
            prediction = call.get(0, "input")
            target = call.get(1, "target", call.kwargs.get("targets"))
            if isinstance(prediction, Value) and isinstance(target, Value):
                found.append(Loss(LOSSES[call.name], call, prediction, target))
        elif call.name in _MEANS and call.inputs and (loss := _written_out(call)) is not None:
            found.append(loss)
    return sorted(found, key=lambda loss: loss.call.index)


def _written_out(mean: Call) -> Loss | None:
    """Return the loss whose last call is ``mean``, if it is the mean of a distance."""
    distance = mean.inputs[0].maker()
    if distance is None or not distance.inputs:
        return None
    kind = _DISTANCES.get(distance.name)
    if distance.name in ("pow", "__pow__") and distance.get(1, "exponent") != 2:
        kind = None
    if distance.name in _PRODUCTS and len({id(x) for x in distance.inputs}) == 1:
        kind = "mse"
    difference = distance.inputs[0].maker()
    if kind is None or difference is None or difference.name not in _DIFFERENCES:
        return None
    ends = difference.inputs
    if len(ends) != 2 or ends[0].requires_grad == ends[1].requires_grad:
        return None
    target, prediction = sorted(ends, key=lambda value: value.requires_grad)
    return Loss(kind, difference, prediction, target, is_written_out=True)
