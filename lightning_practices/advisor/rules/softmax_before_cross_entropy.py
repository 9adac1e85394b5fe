"""Softmax before a loss that computes it itself."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP201", "error",
    practice="Cross entropy gets logits, not probabilities",
    measures="the function that made the first argument of cross_entropy",
    healthy="any but softmax and sigmoid",
    source="torch.nn.CrossEntropyLoss: the input is expected to contain the unnormalized logits",
)  # fmt: skip
def softmax_before_cross_entropy(seen: Observation) -> Iterator[Evidence]:
    for loss in seen.step.losses:
        maker = loss.prediction.maker()
        if (
            loss.kind == "cross_entropy"
            and maker is not None
            and maker.name in ("softmax", "sigmoid")
        ):
            yield Evidence(
                f"cross_entropy ({loss.call.line}) applies softmax to the output of {maker}, which"
                " holds probabilities already: gradients are small and the loss can't reach 0",
                f"remove {maker.name}, and apply it to predictions only",
                (maker.module,),
            )
