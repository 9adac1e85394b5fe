"""Cross entropy on one class, or over the samples of a batch."""

from collections.abc import Iterator

import torch

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import batch_size, layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import CLASSES, Loss

_REMEDY = (
    "use nn.BCEWithLogitsLoss() with float targets of the same shape for one output, or two outputs"
)


@rule(
    "LP205", "error",
    practice="Cross entropy is over two classes or more",
    measures="the size of dimension 1 of the first argument of cross_entropy",
    healthy="2 and more",
    source="questions on forums about a cross entropy that is 0 from the first step",
)  # fmt: skip
def one_class(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen, CLASSES):
        shape = loss.prediction.shape
        place = tuple(name for name in [layer_of(loss.prediction)] if name)
        if len(shape) > 1 and shape[1] == 1 and shape[0] > 1:
            yield Evidence(
                f"{loss.call} gets outputs of shape {shape}: over one class it is always 0, and"
                " nothing is learnt",
                _REMEDY,
                place,
            )
        elif len(shape) == 1 and 1 < shape[0] == batch_size(step) and _are_labels(loss):
            yield Evidence(
                f"{loss.call} gets outputs of shape {shape}, one for each sample of the batch, and"
                " takes the samples for classes",
                _REMEDY,
                place,
            )


def _are_labels(loss: Loss) -> bool:
    """Return whether targets are 0 and 1, rather than shares of a list, which sum to 1."""
    x = loss.target.tensor
    return (
        x is not None
        and x.is_floating_point()
        and bool(((x == 0) | (x == 1)).all())
        and not bool(torch.isclose(x.sum(), x.new_ones(())))
    )
