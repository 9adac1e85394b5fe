"""A loss with prediction and target in the wrong order."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule

_KINDS = frozenset({"cross_entropy", "nll", "bce", "bce_logits"})


@rule(
    "LP219", "error",
    practice="A loss takes the prediction first, then the target",
    measures="which argument of cross entropy comes from the batch, and which has a gradient",
    healthy="the first has a gradient, or the second has none",
    source="torch.nn.CrossEntropyLoss: forward(input, target); scikit-learn has the other order",
)  # fmt: skip
def swapped_arguments(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, _KINDS):
        first, second = loss.prediction, loss.target
        is_target = first.is_data and not first.depth and not first.requires_grad
        if is_target and second.requires_grad and second.depth:
            yield Evidence(
                f"{loss.call} gets the target first, and the prediction second",
                f"{loss.call.name}(prediction, target)",
                tuple(name for name in [layer_of(second)] if name),
            )
