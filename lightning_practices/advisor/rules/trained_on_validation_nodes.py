"""A loss of the rows that validation keeps apart by a mask, as the nodes of a graph."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._samples import entry_of
from lightning_practices.advisor._small_batches import run_again

_SELECTING = frozenset({"__getitem__", "masked_select"})
_SAME = 1e-5  # relative; sums on a GPU aren't in the same order each time


class _Selection(NamedTuple):
    """Labels of which validation selects some by a mask.

    Attributes:
        labels: The entry of the batch that holds the labels.
        mask: The entry that holds the mask.
    """

    labels: str
    mask: str


@rule(
    "LP347", "warning",
    practice="Nodes for validation don't train",
    measures="the training loss, after the labels are changed that validation selects by a mask in"
    " the same batch",
    healthy="unchanged",
    source="Kipf and Welling, 2017, arXiv:1609.02907: the loss is over the labelled nodes;"
    " torch_geometric: loss of out[data.train_mask]",
)  # fmt: skip
def trained_on_validation_nodes(seen: Observation) -> Iterator[Evidence]:
    for found in _selections(seen):
        labels, mask = (entry_of(seen.step.batch, source) for source in found)
        assert isinstance(labels, Tensor)
        assert isinstance(mask, Tensor)
        changed = labels.clone()
        changed[mask] = labels[mask].roll(1, 0)
        before, after = (_loss(seen, labels, each) for each in (labels, changed))
        if before is None or after is None or torch.equal(labels, changed):
            continue
        if abs(before - after) > _SAME * max(abs(before), abs(after)):
            share = float(mask.float().mean())
            yield Evidence(
                f"the training loss changes with the labels {found.labels}[{found.mask}], by which"
                f" validation is measured ({share:.0%} of the rows): the model is trained on them",
                "cross_entropy(logits[train_mask], labels[train_mask]) in the training step",
                numbers={"share": share},
            )
            return


def _selections(seen: Observation) -> list[_Selection]:
    """Return the labels that validation selects by a mask, where both splits have the same ones."""
    step = seen.validation_step
    if step is None or not seen.module.automatic_optimization:
        return []
    found = []
    for call in step.calls:
        if call.name not in _SELECTING or len(call.inputs) != 2:
            continue
        selection = _Selection(*(x.origin().source or "" for x in call.inputs))
        of_train = [entry_of(seen.step.batch, source) for source in selection]
        of_val = [entry_of(step.batch, source) for source in selection]
        labels, mask = of_train
        if not isinstance(labels, Tensor) or not isinstance(mask, Tensor):
            continue
        if labels.dim() != 1 or mask.shape != labels.shape or mask.dtype != torch.bool:
            continue
        if mask.all() or call.output.dtype != labels.dtype or selection in found:
            continue
        if all(isinstance(y, Tensor) and torch.equal(x, y)
               for x, y in zip(of_train, of_val, strict=True)):  # fmt: skip
            found.append(selection)
    return found


def _loss(seen: Observation, labels: Tensor, changed: Tensor) -> float | None:
    """Return the loss of the training step with other labels."""
    losses: list[float] = []

    def after(loss: Tensor) -> None:
        if loss.numel() == 1:
            losses.append(float(loss.detach()))

    batch = tree_map(lambda x: changed if x is labels else x, seen.step.batch)
    run_again(seen, batch, after=after, training=True)
    return losses[0] if losses else None
