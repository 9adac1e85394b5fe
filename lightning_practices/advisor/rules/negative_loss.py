"""A loss that is negative, or reaches the step's loss with a minus."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of, losses_seen, places
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import sign_in_loss
from lightning_practices.advisor._trace import REGRESSION, Call, Loss

_ROUNDING = -1e-4
_DISTANCES = frozenset({"pow", "square", "abs", "mul"})
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
    groups = [group for one in seen.optimizers for group in one.param_groups]
    if any(group.get("maximize", False) for group in groups):
        return
    yield from _likelihoods(seen)
    signs = [_sign(step, loss) for step in seen.steps for loss in step.losses]
    if signs and all(sign < 0 for sign in signs):
        for _, loss in [*losses_seen(seen, _ABOVE_ZERO)][:1]:
            what, remedy = f"{loss.call}", "return the loss itself"
            if loss.is_written_out:
                what = f"the {loss.kind} of the difference {loss.call}"
                remedy = "a minus before a log-likelihood: loss = -distribution.log_prob(y).mean()"
            yield Evidence(
                f"{what} reaches the step's loss with a minus: the fit makes it larger",
                remedy,
                tuple(name for name in [layer_of(loss.prediction)] if name),
            )


def _sign(step: Step, loss: Loss) -> int:
    """Return the sign with which a loss, or the distance that it is written out as, is added up."""
    if not loss.is_written_out:
        return sign_in_loss(step, loss.call.output)
    distances = [call for call in step.users(loss.call.output) if call.name in _DISTANCES]
    signs = {sign_in_loss(step, call.output) for call in distances}
    return signs.pop() if len(signs) == 1 else 0


def _likelihoods(seen: Observation) -> Iterator[Evidence]:
    """Yield log-probabilities that are the whole loss, without a minus."""
    if any(step.losses for step in seen.steps):
        return
    for call in seen.step.after_layers:
        if _is_log_probability(call) and sign_in_loss(seen.step, call.output) > 0:
            yield Evidence(
                f"the step's loss is the output of {call} without a minus: the fit makes the"
                " likelihood smaller",
                "nll_loss(log_probabilities, target), or a minus before the mean",
                places(seen, call),
            )


def _is_log_probability(call: Call) -> bool:
    """Return whether a call is a log-softmax, also as ``logits - logits.logsumexp()``."""
    if call.name in ("log_softmax", "log_sigmoid"):
        return True
    if call.name != "sub" or len(call.inputs) != 2:
        return False
    total = call.inputs[1].maker()
    if total is None or total.name != "logsumexp":
        return False
    return total.inputs[0].origin() is call.inputs[0].origin()


def _is_in_range(loss: Loss) -> bool:
    """Return whether arguments are in the range of the loss; another rule says if they aren't."""
    prediction, target = loss.prediction.tensor, loss.target.tensor
    if loss.kind == "nll":
        return prediction is not None and bool((prediction <= 0).all())
    if loss.kind in ("bce", "bce_logits"):
        return target is not None and bool(((target >= 0) & (target <= 1)).all())
    return True
