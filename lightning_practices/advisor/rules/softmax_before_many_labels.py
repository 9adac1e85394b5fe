"""A softmax over labels of which a sample may have several, or none."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import losses_seen, made_by, places, softmax_dimension
from lightning_practices.advisor._rule import Evidence, rule

_SHARE = 0.02  # of the samples; 0 in healthy programs


@rule(
    "LP261", "error",
    practice="Labels that don't exclude one another have a sigmoid each, not a softmax",
    measures="binary cross entropy after softmax: the share of the samples without exactly one"
    " label",
    healthy="0 %, or sigmoid; the threshold is 2 %",
    source="questions on forums about multi-label classification that predicts one label only",
)  # fmt: skip
def softmax_before_many_labels(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"bce"}):
        maker, target = made_by(loss.prediction, {"softmax"}), loss.target.tensor
        dimension = softmax_dimension(maker) if maker is not None else None
        if maker is None or target is None or not dimension or not target.numel():
            continue
        if target.shape != maker.output.shape or target.shape[dimension] < 2:
            continue
        others = ((target.float().sum(dimension) - 1).abs() > 0.5).float().mean().item()
        if others > _SHARE:
            yield Evidence(
                f"{loss.call} gets the output of {maker}, which sums to 1 over the labels, but"
                f" {others:.0%} of the samples don't have one label: they have several or none",
                "torch.sigmoid in place of softmax, or better: no activation and"
                " nn.BCEWithLogitsLoss()",
                places(seen, maker),
                {"share": others},
            )
