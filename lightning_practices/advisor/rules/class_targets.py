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
    "LP254", "warning",
    practice="Several labels at a time are for sigmoids",
    measures="rows of 0 and 1 that sum to 2 and more, among the targets of cross entropy",
    healthy="none: the shares of the classes in a row sum to 1",
    source="torch.nn.CrossEntropyLoss: the target contains class probabilities",
)  # fmt: skip
def several_labels(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"cross_entropy"}):
        x = loss.target.tensor
        if x is None or not x.is_floating_point() or x.dim() < 2 or not x.numel():
            continue
        share = float((x.sum(1) >= 2).float().mean())
        if share > 0 and bool(((x == 0) | (x == 1)).all()):
            yield Evidence(
                f"{share:.0%} of the target rows of {loss.call} hold two labels and more, as 0 and"
                " 1: softmax lets the labels of a sample compete, and the loss can't reach 0",
                "nn.BCEWithLogitsLoss() in its place, and sigmoid for predictions",
                tuple(name for name in [layer_of(loss.prediction)] if name),
                {"share": share},
            )


@rule(
    "LP218", "hint",
    practice="Soft targets of cross entropy sum to 1 over the classes",
    measures="sums of the rows of floating point targets",
    healthy="1",
    source="torch.nn.CrossEntropyLoss: the target contains class probabilities",
    explained_by=("LP254",),
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
            _remedy(low, high, count),
        )
    return None


def _remedy(low: int, high: int, count: int) -> str:
    """Return what brings classes from ``low`` to ``high`` and ``count`` outputs together."""
    if low == 1 and high == count:  # classes that are counted from 1
        return "y = y - 1, as classes begin at 0"
    return f"an output of {high + 1} classes" if low >= 0 else f"ignore_index={low}"
