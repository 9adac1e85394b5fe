"""A Kullback-Leibler divergence of arguments in the wrong scale."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import PROBABILITIES
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import losses_seen, made_by, makers, places
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Loss

_ROUNDING = 1e-3


@rule(
    "LP208", "error",
    practice="kl_div gets log-probabilities, and a target in the scale that log_target says",
    measures="the range of both arguments of kl_div, and the function that made the first",
    healthy="input at most 0; target at least 0, or at most 0 with log_target",
    source="torch.nn.KLDivLoss: the input should be a distribution in the log space",
)  # fmt: skip
def kl_without_log_probabilities(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"kl"}):
        found = makers(loss.prediction)
        if (problem := _problem(loss)) is not None:
            yield Evidence(
                f"kl_div ({loss.call.line}) gets {problem}",
                "kl_div(log_softmax(logits, dim=-1), softmax(teacher, dim=-1),"
                ' reduction="batchmean")',
                places(seen, found[0]) if found else (),
            )


def _problem(loss: Loss) -> str | None:
    x, y = loss.prediction.tensor, loss.target.tensor
    if x is None or y is None or not x.numel() or not y.numel():
        return None
    maker = made_by(loss.prediction, PROBABILITIES)
    if maker is not None:
        return f"the output of {maker} as input: probabilities, not their logarithms"
    if float(x.max()) > _ROUNDING:
        return f"an input of up to {float(x.max()):.3g}: logarithms of probabilities are at most 0"
    log_target = loss.call.get(5, "log_target", False)
    if not log_target and float(y.min()) < -_ROUNDING:
        return f"a target of {float(y.min()):.3g} and less, without log_target=True"
    if log_target and float(y.min()) >= 0 and float(y.max()) > _ROUNDING:
        return "a target of probabilities with log_target=True"
    return None
