"""Sigmoid before a loss that computes the sigmoid itself."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import PROBABILITIES
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import activation, losses_seen, made_by, places
from lightning_practices.advisor._rule import Evidence, rule

_LOSSES = ("binary_cross_entropy_with_logits", "multilabel_soft_margin_loss")


@rule(
    "LP202", "error",
    practice="Binary cross entropy with logits gets logits, not probabilities",
    measures="the function that made the first argument of binary_cross_entropy_with_logits",
    healthy="any function but sigmoid and softmax",
    source="torch.nn.BCEWithLogitsLoss: this loss combines a Sigmoid layer and the BCELoss",
)  # fmt: skip
def probabilities_before_bce_with_logits(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"bce_logits", "margin"}):
        maker = made_by(loss.prediction, PROBABILITIES)
        if maker is None or loss.call.name not in _LOSSES:
            continue
        name = activation(maker)
        yield Evidence(
            f"{loss.call.name} ({loss.call.line}) applies sigmoid to the output of {maker}, which"
            " holds probabilities already: the predicted probabilities stay within 0.5 to 0.73",
            f"remove {name}, and apply it to predictions only",
            places(seen, maker),
        )
