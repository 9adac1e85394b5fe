"""Targets of cross entropy that aren't classes of the output."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import classes_of, layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import CLASSES, Loss

_IGNORED = -100  # torch's default for ignore_index
_SUM = 1.5  # of the shares of classes in a row; 1 in soft targets


@rule(
    "LP216", "error",
    practice="Targets of cross entropy are classes of the output",
    measures="range, dtype and shape of the targets, where the loss raises an exception",
    healthy="int64 (N, ...), from 0 to C - 1; or floating point shares (N, C, ...)",
    source="torch.nn.CrossEntropyLoss: the target",
)  # fmt: skip
def class_targets(seen: Observation) -> Iterator[Evidence]:
    failed = [] if seen.failure is None else list(losses_seen(seen, CLASSES))
    for _, loss in failed:
        if (found := _problem(loss)) is not None:
            message, remedy = found
            yield Evidence(
                f"{loss.call} raises an exception: outputs have shape {loss.prediction.shape},"
                f" {message}",
                remedy,
                tuple(name for name in [layer_of(loss.prediction)] if name),
            )


@rule(
    "LP218", "hint",
    practice="Soft targets of cross entropy sum to 1 over the classes",
    measures="sums of the rows of floating point targets",
    healthy="1",
    source="torch.nn.CrossEntropyLoss: the target contains class probabilities",
)  # fmt: skip
def sums_of_soft_targets(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"cross_entropy"}):
        x = loss.target.tensor
        if x is None or not x.is_floating_point() or x.dim() < 2 or not x.numel():
            continue
        most = float(x.sum(1).max())
        if most > _SUM:
            yield Evidence(
                f"rows of the targets of {loss.call} sum to up to {most:.3g}: cross entropy is for"
                " one class of several",
                "use nn.BCEWithLogitsLoss() for several labels at a time",
                tuple(name for name in [layer_of(loss.prediction)] if name),
            )


def _problem(loss: Loss) -> tuple[str, str] | None:
    target, count = loss.target, classes_of(loss.prediction)
    x = target.tensor
    if x is None or not x.numel():
        return None
    if x.is_floating_point():
        if target.shape == loss.prediction.shape:
            return None
        return (
            f"and targets {str(x.dtype).removeprefix('torch.')} {target.shape}",
            "target = target.long()" + (".squeeze(1)" if target.shape[1:] == (1,) else ""),
        )
    if len(target.shape) == len(loss.prediction.shape):
        if target.shape == loss.prediction.shape and int(x.max()) <= 1:
            return f"and targets, one-hot integers, {target.shape}", "target = target.argmax(1)"
        return f"and targets {target.shape}", "target = target.squeeze(1)"
    ignored = loss.call.get(4, "ignore_index", _IGNORED)
    kept = x[x != ignored]
    low, high = (int(kept.min()), int(kept.max())) if kept.numel() else (0, 0)
    if low < 0 or high >= count:
        return (
            f"so that classes are 0 to {count - 1}, and targets are from {low} to {high}",
            f"an output of {high + 1} classes" if low >= 0 else f"ignore_index={low}",
        )
    return None
