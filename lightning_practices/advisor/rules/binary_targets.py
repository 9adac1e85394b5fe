"""Targets of binary losses that aren't in the loss's range."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Loss, Value

_SHARE = 0.01  # of the targets; interpolated masks may overshoot in a few
_SLACK = 1e-3
_SIGNED = {"soft_margin_loss": 1, "hinge_embedding_loss": 1, "cosine_embedding_loss": 2,
           "margin_ranking_loss": 2}  # the place of the target  # fmt: skip


@rule(
    "LP215", "error",
    practice="Targets of binary cross entropy are between 0 and 1",
    measures="the share of the targets below 0 or above 1",
    healthy="0 %; elements with another number that a weight or a mask leaves out don't count",
    source="torch.nn.BCEWithLogitsLoss: targets between 0 and 1; questions on forums about"
    " negative losses of segmentations with masks of 0 and 255",
)  # fmt: skip
def binary_targets_out_of_range(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"bce", "bce_logits"}):
        x = loss.target.tensor
        if x is None or not x.numel() or _is_masked(loss) or loss.target.requires_grad:
            continue
        outside = ((x.float() < -_SLACK) | (x.float() > 1 + _SLACK)).float().mean().item()
        if outside > _SHARE:
            low, high = float(x.min()), float(x.max())
            yield Evidence(
                f"{outside:.0%} of the targets of {loss.call} are outside of 0 to 1: they are from"
                f" {low:.3g} to {high:.3g}, and the loss has no least value",
                _remedy(low, high),
                tuple(name for name in [layer_of(loss.prediction)] if name),
                {"share": outside},
            )


@rule(
    "LP217", "error",
    practice="Targets of margin losses are -1 and 1",
    measures="the targets of soft_margin, hinge_embedding, cosine_embedding and margin_ranking",
    healthy="-1 and 1, not 0 and 1",
    source="torch.nn.CosineEmbeddingLoss: the label is 1 or -1; a label of 0 adds no loss",
)  # fmt: skip
def signed_targets(seen: Observation) -> Iterator[Evidence]:
    for call in seen.step.after_layers:
        target = call.get(_SIGNED.get(call.name, 0), "target")
        if call.name not in _SIGNED or not isinstance(target, Value) or target.tensor is None:
            continue
        x = target.tensor
        if bool(((x == 0) | (x == 1)).all()) and bool((x == 0).any()):
            yield Evidence(
                f"the targets of {call} are 0 and 1: {float((x == 0).float().mean()):.0%} are 0,"
                " which isn't a label of this loss",
                f"{call.name}(..., 2 * target - 1)",
                _place(call),
            )


def _is_masked(loss: Loss) -> bool:
    weight = loss.call.get(2, "weight")
    return loss.call.kwargs.get("reduction") == "none" or isinstance(weight, Value)


def _remedy(low: float, high: float) -> str:
    if low == -1 and high <= 1:
        return "target = (target + 1) / 2"
    return f"target = target / {high:g}" if low >= 0 and high > 2 else "target = (target > 0.5)"


def _place(call: Call) -> tuple[str, ...]:
    return tuple(name for x in call.inputs[:1] if (name := layer_of(x)))
