"""A loss that is negative, or reaches the step's loss with a minus."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen, places
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import sign_in_loss
from lightning_practices.advisor._trace import REGRESSION, Loss

_ROUNDING = -1e-4
_ABOVE_ZERO = frozenset({"cross_entropy", "nll", "bce", "bce_logits", *REGRESSION})


@rule(
    "LP221", "error",
    practice="A loss that can't be negative isn't, and is minimised",
    measures="the sign of the first losses of torch's kinds, and that with which they are added up",
    healthy="at least 0, and at least one with a positive sign",
    source="questions on forums about a negative cross entropy",
)  # fmt: skip
def negative_loss(seen: Observation) -> Iterator[Evidence]:
    losses = [loss for _, loss in losses_seen(seen, _ABOVE_ZERO) if not loss.is_written_out]
    for loss in losses:
        low = loss.call.output.statistics
        if low is not None and low.low < _ROUNDING and _is_in_range(loss):
            yield Evidence(
                f"{loss.call} is {low.low:.3g} in the first step, and can't be negative for valid"
                " predictions, targets and weights",
                "look at the range of the target and the signs of the weights",
                tuple(name for name in [layer_of(loss.prediction)] if name),
                {"loss": low.low},
            )
    yield from _likelihoods(seen)
    signs = [sign_in_loss(step, loss.call.output) for step in seen.steps for loss in step.losses]
    if signs and all(sign < 0 for sign in signs):
        for loss in losses[:1]:
            yield Evidence(
                f"{loss.call} reaches the step's loss with a minus: the fit makes it larger",
                "return the loss itself",
                tuple(name for name in [layer_of(loss.prediction)] if name),
            )


def _likelihoods(seen: Observation) -> Iterator[Evidence]:
    """Yield log-probabilities that are the whole loss, without a minus."""
    if any(step.losses for step in seen.steps):
        return
    for call in seen.step.after_layers:
        if call.name in ("log_softmax", "log_sigmoid") and sign_in_loss(seen.step, call.output) > 0:
            yield Evidence(
                f"the step's loss is the output of {call} without a minus: the fit makes the"
                " likelihood smaller",
                "nll_loss(log_probabilities, target), or a minus before the mean",
                places(seen, call),
            )


def _is_in_range(loss: Loss) -> bool:
    """Return whether arguments are in the range of the loss; another rule says if they aren't."""
    prediction, target = loss.prediction.tensor, loss.target.tensor
    if loss.kind == "nll":
        return prediction is not None and bool((prediction <= 0).all())
    if loss.kind in ("bce", "bce_logits"):
        return target is not None and bool(((target >= 0) & (target <= 1)).all())
    return True
