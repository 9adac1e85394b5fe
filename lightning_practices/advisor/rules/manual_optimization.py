"""Manual optimization that doesn't clear gradients, or doesn't step."""

from collections.abc import Iterator

from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

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
    if seen.module.automatic_optimization:
        return
    for optimizer, updates in zip(seen.optimizers, seen.updates, strict=False):
        if updates.accumulated:
            name = type(optimizer).__name__.removeprefix("Lightning")
            yield Evidence(
                f"{name} stepped, and at its next step the gradients held those of the steps before"
                " too: nothing clears them",
                "optimizer.zero_grad() before self.manual_backward(loss)",
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
    measures="steps of the optimizers in three training steps, and whether the module calls step",
    healthy="a step in one of the training steps, or code that calls step",
    source=_SOURCE,
)  # fmt: skip
def optimizer_never_steps(seen: Observation) -> Iterator[Evidence]:
    if seen.module.automatic_optimization or len(seen.steps) < _ENOUGH:
        return
    if any(updates.count for updates in seen.updates) or mentions(type(seen.module), "step"):
        return
    if seen.updates:
        yield Evidence(
            f"optimization is manual, and in {len(seen.steps)} training steps no optimizer stepped:"
            " the weights stay as they are",
            "optimizer.step() after self.manual_backward(loss), or automatic_optimization = True",
        )


@rule(
    "LP623", "error",
    practice="A module with trainable parameters has an optimizer",
    measures="the result of configure_optimizers and the parameters that got a gradient",
    healthy="an optimizer, or manual optimization",
    source="Lightning warns of configure_optimizers that returns None",
)  # fmt: skip
def no_optimizer(seen: Observation) -> Iterator[Evidence]:
    trained = [name for name, x in seen.step.gradients.items() if x is not None and not x.zero]
    is_without = not any(getattr(one, "param_groups", None) for one in seen.optimizers)
    if seen.module.automatic_optimization and is_without and trained:
        yield Evidence(
            f"configure_optimizers returns no optimizer, and {len(trained)} parameters get a"
            " gradient: the weights stay as they are",
            "return torch.optim.AdamW(self.parameters(), lr=1e-3) from configure_optimizers",
        )
