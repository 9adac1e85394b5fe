"""A first loss that is too high, or not finite."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import classes_of, layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import LOSSES, Call, Loss

_SCALES = ("mul", "__mul__", "__rmul__", "div", "__truediv__")
_TIMES = 3.0  # the entropy of equal probabilities; healthy programs are below 2


@rule(
    "LP220", "warning",
    practice="A classifier starts near the loss of equal probabilities",
    measures="the mean loss of the first batch, without weights and smoothing, over log(classes)",
    healthy="0.5 to 2; the threshold is 3",
    source="Karpathy (2019), A recipe for training neural networks: verify loss at init",
    explained_by=("LP301", "LP302", "LP304", "LP403", "LP405", "LP406"),
)  # fmt: skip
def first_loss_is_high(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen, {"cross_entropy", "bce_logits"}):
        prediction, target = loss.prediction.tensor, loss.target.tensor
        if prediction is None or target is None or seen.failure is not None:
            continue
        if _is_tied(step, loss) or _is_scaled(loss):
            continue
        count = 2
        if loss.kind == "cross_entropy":
            count = classes_of(prediction) if prediction.dim() > 1 else 1
        value = _mean_loss(loss, prediction.float(), target) if count > 1 else math.nan
        expected = math.log(max(count, 2))
        if value > _TIMES * expected:
            yield Evidence(
                f"{loss.call} is {value:.3g} on the first batch; equal probabilities of {count}"
                f" classes have {expected:.3g}. Logits reach {float(prediction.abs().max()):.3g}",
                "standardise the inputs, or scale the last layer's weights down:"
                " nn.init.normal_(layer.weight, std=0.01)",
                tuple(name for name in [layer_of(loss.prediction)] if name),
                {"loss": value, "expected": expected},
            )


def _is_scaled(loss: Loss) -> bool:
    """Return whether logits are scaled by a number, on purpose, as cosines with a margin are."""
    maker = loss.prediction.maker()
    return maker is not None and maker.name in _SCALES and len(maker.inputs) == 1


@rule(
    "LP222", "error",
    practice="The first loss is finite",
    measures="the share of finite elements of the loss, and of all layers' outputs before it",
    healthy="all",
    source="TheDeepChecker (2023): unstable loss; DeepLocalize (2021)",
    explained_by=("LP301", "LP405"),
)  # fmt: skip
def loss_is_not_finite(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    for root in step.roots:
        if root.statistics is None or not root.statistics.finite < 1:
            continue
        calls = sorted(root.before(), key=lambda call: call.index)
        first = next((call for call in calls if _is_broken(call) and call is not root.call), None)
        where = "" if first is None else f"; the first output that isn't finite is that of {first}"
        broken = next((loss for loss in step.losses if _has_broken_target(loss)), None)
        if broken is not None and first is None:
            where = f"; the targets of {broken.call} aren't"
        place = layer_of(root) if first is None else first.module
        yield Evidence(
            f"the loss of the first step isn't finite{where}",
            "look at that layer's input for values that aren't finite, and at log, sqrt and"
            " divisions of 0",
            (place,) if place else (),
        )


def _is_tied(step: Step, loss: Loss) -> bool:
    """Return whether the last layer has the weight of an embedding.

    Embeddings begin with a standard deviation of 1, so that the loss is far above, and falls
    within the first steps.
    """
    layer = next((call for call in loss.prediction.before() if call.is_layer), None)
    embedded = {name for call in step.calls if call.name == "embedding" for name in call.parameters}
    return layer is not None and not embedded.isdisjoint(layer.parameters)


def _mean_loss(loss: Loss, prediction: Tensor, target: Tensor) -> float:
    """Return the mean of a loss without its weights, smoothing and reduction."""
    try:
        with torch.no_grad():
            if loss.kind == "bce_logits":
                wide = target.float().expand_as(prediction)
                if bool(((wide < 0) | (wide > 1)).any()):
                    return math.nan
                return float(functional.binary_cross_entropy_with_logits(prediction, wide))
            ignored = loss.call.get(4, "ignore_index", -100)
            target = target.float() / target.sum(1, keepdim=True).clamp_min(1) if (
                target.is_floating_point() and target.dim() > 1
            ) else target  # fmt: skip
            return float(functional.cross_entropy(prediction, target, ignore_index=ignored))
    except (RuntimeError, IndexError):  # the loss itself may have been given other shapes
        return math.nan


def _has_broken_target(loss: Loss) -> bool:
    x = loss.target.tensor
    return x is not None and x.is_floating_point() and not bool(torch.isfinite(x).all())


def _is_broken(call: Call) -> bool:
    return any(
        x.statistics is not None and x.statistics.finite < 1 and call.name not in LOSSES
        for x in call.outputs
    )
