"""A negative log-likelihood of outputs that aren't log-probabilities."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import PROBABILITIES
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import (
    activation,
    are_probabilities,
    losses_seen,
    makers,
    places,
)
from lightning_practices.advisor._rule import Evidence, rule

_POSITIVE = 1e-3  # logarithms of probabilities are at most 0, but for rounding
_DENSITIES = frozenset({"sum", "logsumexp", "log", "sub", "log_prob"})  # may be above 1


@rule(
    "LP207", "error",
    practice="A negative log-likelihood gets log-probabilities",
    measures="the greatest element of the first argument of nll_loss and ctc_loss",
    healthy="0 at most",
    source="torch.nn.NLLLoss: the input is expected to contain log-probabilities of each class",
)  # fmt: skip
def nll_without_log_probabilities(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"nll", "ctc"}):
        found, x = makers(loss.prediction), loss.prediction.tensor
        if x is None or not x.numel() or not found or found[0].name in _DENSITIES:
            continue
        high = float(x.max())
        if not high > _POSITIVE or loss.prediction.shape[1:2] == (1,):
            continue
        maker = found[0]
        is_normal = activation(maker) in PROBABILITIES or are_probabilities(loss.prediction)
        name = "probabilities" if is_normal else "no log-probabilities"
        yield Evidence(
            f"{loss.call.name} ({loss.call.line}) gets the output of {maker}, which are {name}: the"
            f" greatest is {high:.3g}, so that the loss falls below 0 without an end",
            "use nn.CrossEntropyLoss() on logits, or log_softmax(logits, dim=1) before nll_loss",
            places(seen, maker),
            {"greatest": high},
        )
