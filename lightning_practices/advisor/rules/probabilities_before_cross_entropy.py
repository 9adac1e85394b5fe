"""Softmax or sigmoid before a loss that computes the softmax itself."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import PROBABILITIES
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import (
    activation,
    are_probabilities,
    losses_seen,
    made_by,
    makers,
    places,
)
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP201", "error",
    practice="Cross entropy gets logits, not probabilities",
    measures="the function that made the first argument of cross_entropy, and the sums of its rows",
    healthy="any function but softmax and sigmoid; rows that don't sum to 1",
    source="torch.nn.CrossEntropyLoss: the input is expected to contain the unnormalized logits",
)  # fmt: skip
def probabilities_before_cross_entropy(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"cross_entropy"}):
        maker = made_by(loss.prediction, PROBABILITIES)
        if maker is None and are_probabilities(loss.prediction):
            maker = next(iter(makers(loss.prediction)), None)
        if maker is None or loss.prediction.shape[1:2] == (1,):
            continue
        yield Evidence(
            f"cross_entropy ({loss.call.line}) applies softmax to the output of {maker}, which"
            " holds probabilities already: gradients are small and the loss can't reach 0",
            _remedy(activation(maker)),
            places(seen, maker),
        )


def _remedy(name: str) -> str:
    if name in PROBABILITIES:
        return f"remove {name}, and apply it to predictions only"
    return "nll_loss(probabilities.log(), target), or cross_entropy of logits"
