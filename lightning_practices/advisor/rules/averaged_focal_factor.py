"""A focal loss whose factor is that of a mean loss."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import CASTS, CLAMPS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Loss, Value

_KINDS = frozenset({"cross_entropy", "nll", "bce", "bce_logits"})
_DIFFERENCES = frozenset({"sub", "__rsub__", "rsub"})
_POWERS = frozenset({"pow", "square"})
_KEEPING = CASTS | CLAMPS | {"neg", "mul", "div", "detach", "clone", "squeeze", "view", "reshape"}
_REDUCTIONS = frozenset({"mean", "sum"})


@rule(
    "LP525", "warning",
    practice="The factor of a focal loss is that of each sample",
    measures="factors 1 - exp(-loss) of one element, where the loss has many samples",
    healthy="the loss of each sample, and the mean after the factor",
    source="Lin et al., 2017, arXiv:1708.02002; reports of focal losses with reduction='mean'",
)  # fmt: skip
def averaged_focal_factor(seen: Observation) -> Iterator[Evidence]:
    for step in seen.steps[:1]:
        for call in step.calls:
            if call.name != "mul" or id(call) not in step.reach or len(call.inputs) != 2:
                continue
            for factor, other in (call.inputs, call.inputs[::-1]):
                loss = _averaged(step, factor)
                if loss is not None and _depends(other, loss):
                    place = layer_of(loss.prediction)
                    yield Evidence(
                        f"{call} weights the loss by a factor 1 - exp(-loss) of the mean loss of"
                        f" {loss.prediction.shape[0]} samples, {loss.call}: easy and hard samples"
                        " get the same weight",
                        "ce = F.cross_entropy(logits, y, reduction='none'); loss = ((1 -"
                        " torch.exp(-ce)) ** gamma * ce).mean()",
                        (place,) if place else (),
                    )
                    return


def _averaged(step: Step, factor: Value) -> Loss | None:
    """Return the loss of whose mean a number is the focal factor."""
    call, found = (factor.call if not factor.shape else None), set[str]()
    while call is not None and call.inputs:
        by_loss = next((loss for loss in step.losses if loss.call is call), None)
        if by_loss is not None or call.name in _REDUCTIONS:
            is_focal = {"exp", "difference"} <= found
            return _reduced(step, call) if is_focal else None
        if call.name == "exp":
            found.add("exp")
        elif call.name in _DIFFERENCES and len(call.inputs) == 1:
            if "exp" in found:  # the difference is taken after the exponential
                return None
            found.add("difference")
        elif call.name not in _KEEPING | _POWERS:
            return None
        chosen = [x for x in call.inputs if x.is_data]
        call = chosen[0].call if len(chosen) == 1 else None
    return None


def _reduced(step: Step, call: Call) -> Loss | None:
    """Return the loss of several samples that a call makes a number of, or is."""
    if call.output.shape:
        return None
    calls = {id(one) for one in call.output.before()}
    found = [one for one in step.losses if one.kind in _KINDS and id(one.call) in calls]
    found = [one for one in found if one.prediction.shape and one.prediction.shape[0] > 1]
    return found[0] if len(found) == 1 else None


def _depends(value: Value, loss: Loss) -> bool:
    """Whether a value depends on a loss, or on another one of the same prediction."""
    origin = loss.prediction.origin()
    return any(
        one is loss.call or any(x.origin() is origin for x in one.inputs) for one in value.before()
    )
