"""A training step that returns no loss."""

from collections.abc import Iterator

from lightning_practices._names import count
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import trainable
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP130", "error",
    practice="training_step returns the loss",
    measures="whether a training step returned a loss, or called backward itself",
    healthy="one did; none has to where there is no optimizer",
    source="Lightning: a training_step that returns None skips the batch",
)  # fmt: skip
def no_loss(seen: Observation) -> Iterator[Evidence]:
    if not seen.module.automatic_optimization or not seen.optimizers or not trainable(seen):
        return
    if not any(step.roots for step in seen.steps):
        steps = len(seen.steps)
        yield Evidence(
            f"training_step returned None in {'each of ' * (steps > 1)}{count(steps, 'step')}:"
            " Lightning skips such a batch, and nothing is trained",
            "return loss at the end of training_step",
            numbers={"steps": steps},
        )
