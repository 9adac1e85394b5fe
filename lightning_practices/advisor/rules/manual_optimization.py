"""Manual optimization that doesn't clear gradients, or doesn't step."""

from collections.abc import Iterator
from itertools import pairwise

from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_practices._names import plain_name
from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Statistics
from lightning_practices.advisor._weighted import number_of

_SOURCE = "Lightning's guide to manual optimization"
_ENOUGH = 2  # steps in which a gradient accumulation of few batches would have stepped


@rule(
    "LP621", "error",
    practice="Gradients are cleared between two steps of an optimizer",
    measures="the gradients of an optimizer's parameters before each backward pass",
    healthy="they are empty before one of the passes between two steps",
    source=_SOURCE,
)  # fmt: skip
def gradients_accumulate(seen: Observation) -> Iterator[Evidence]:
    for optimizer, updates in zip(seen.optimizers, seen.updates, strict=False):
        if updates.accumulated:
            name = type(optimizer).__name__.removeprefix("Lightning")
            yield Evidence(
                f"{name} stepped, and at its next step the gradients held those of the steps before"
                " too: nothing clears them",
                "optimizer.zero_grad() before self.manual_backward(loss), or no own"
                " optimizer_zero_grad",
            )


@rule(
    "LP624", "error",
    practice="Gradients are kept until the optimizer has stepped",
    measures="the gradients of an optimizer's parameters after backward passes and at its step",
    healthy="some gradients at each step",
    source=_SOURCE,
    explained_by=("LP106",),
)  # fmt: skip
def gradients_erased(seen: Observation) -> Iterator[Evidence]:
    for optimizer, updates in zip(seen.optimizers, seen.updates, strict=False):
        if updates.erased and not seen.module.automatic_optimization:
            name = type(optimizer).__name__.removeprefix("Lightning")
            yield Evidence(
                f"{name} stepped without gradients: they were cleared between the backward pass and"
                " the step, so that the weights stay as they are",
                "optimizer.zero_grad() before self.manual_backward(loss), or after the step",
            )


@rule(
    "LP622", "error",
    practice="Under manual optimization the module steps its optimizers",
    measures="steps of the optimizers in three training steps, whether the module calls step, and"
    " whether weights have changed",
    healthy="a step in one of the training steps, code that calls step, or changed weights",
    source=_SOURCE,
)  # fmt: skip
def optimizer_never_steps(seen: Observation) -> Iterator[Evidence]:
    if any(updates.count for updates in seen.updates) or len(seen.steps) < _ENOUGH:
        return
    if mentions(type(seen.module), "step", "optimizer_step"):
        return
    is_automatic = seen.module.automatic_optimization
    if is_automatic and is_overridden("optimizer_step", seen.module):
        if seen.observer.accumulate_grad_batches == 1 and not _has_changed(seen):
            yield Evidence(
                f"optimizer_step of {type(seen.module).__name__} calls no step of the optimizer: in"
                f" {len(seen.steps)} training steps the weights stay as they are",
                "optimizer.step(closure=optimizer_closure) in optimizer_step",
            )
    elif seen.updates and not is_automatic and not _has_changed(seen):  # by hand
        yield Evidence(
            f"optimization is manual, and in {len(seen.steps)} training steps no optimizer stepped:"
            " the weights stay as they are",
            "optimizer.step() after self.manual_backward(loss), or automatic_optimization = True",
        )


@rule(
    "LP626", "hint",
    practice="Accumulated gradients are a mean over their batches",
    measures="under manual optimization, the steps in which an optimizer steps, and factors"
    " of the losses",
    healthy="a loss that is divided by the number of batches; or a rate that is chosen for the sum",
    source=_SOURCE,
)  # fmt: skip
def accumulated_sum(seen: Observation) -> Iterator[Evidence]:
    if seen.module.automatic_optimization or len(seen.optimizers) != 1:
        return
    stepped = [place for place, step in enumerate(seen.steps) if step.stepped]
    if len(stepped) < 2 or any(len(step.roots) != 1 for step in seen.steps):
        return
    batches = {later - earlier for earlier, later in pairwise(stepped)}
    is_scaled = any(_scales(call) for call in seen.step.after_layers)
    if len(batches) == 1 and (number := batches.pop()) > 1 and not is_scaled:
        yield Evidence(
            f"the optimizer steps after each {number} batches, whose gradients are added up: the"
            f" gradient is {number} times that of their mean",
            f"self.manual_backward(loss / {number})",
            numbers={"batches": number},
        )


def _scales(call: Call) -> bool:
    """Return whether a call multiplies or divides by a number."""
    is_scale = call.name in ("mul", "div", "true_divide")
    return is_scale and any(number_of(x) is not None for x in call.args)


def _has_changed(seen: Observation) -> bool:
    """Return whether a trainable parameter isn't what it was before the steps."""
    now = {plain_name(name): p for name, p in seen.module.named_parameters()}
    return any(
        weight.is_trainable and name in now and Statistics.of(now[name]) != weight.statistics
        for name, weight in seen.weights.items()
    )
