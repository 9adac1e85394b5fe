"""Logarithms of a softmax that one function computes better, or that cross entropy has within."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import losses_seen, made_by, makers, places
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP212", "hint",
    practice="Logarithms of a softmax are computed once, by log_softmax or cross_entropy",
    measures="log of softmax, and log_softmax before cross_entropy",
    healthy="both are right, but for rounding and the work",
    source="torch.nn.functional.log_softmax: doing these two operations separately is slower and"
    " numerically unstable",
)  # fmt: skip
def log_of_softmax(seen: Observation) -> Iterator[Evidence]:
    for call in seen.step.after_layers:
        if call.name != "log" or not call.output.requires_grad:
            continue
        maker = made_by(call.inputs[0], {"softmax"})
        if maker is not None and call.output.is_data:
            yield Evidence(
                f"{call} of {maker}: small probabilities become 0, and their logarithm infinite",
                "log_softmax(logits, dim=...)",
                places(seen, maker),
            )
    for _, loss in losses_seen(seen, {"cross_entropy"}):
        for maker in makers(loss.prediction)[:1]:
            if maker.name == "log_softmax":
                yield Evidence(
                    f"cross_entropy ({loss.call.line}) computes log_softmax again, after {maker}",
                    "remove log_softmax, or use nll_loss: the loss stays the same",
                    places(seen, maker),
                )
