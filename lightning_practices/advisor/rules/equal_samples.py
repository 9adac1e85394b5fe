"""Inputs that are the same in all samples."""

from collections.abc import Iterator

from torch import Tensor

from lightning_practices.advisor._entries import Entry, all_inputs_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_BATCH = 4  # samples of a batch that tell, at least


@rule(
    "LP318", "error",
    practice="Samples differ",
    measures="whether all samples of all batches have the same input",
    healthy="they differ",
    source="reports of datasets whose __getitem__ ignores its index",
)  # fmt: skip
def equal_samples(seen: Observation) -> Iterator[Evidence]:
    found = all_inputs_of(seen)
    if not found or not all(entry.source and _is_equal(entry) for entry in found):
        return
    entry = found[0]
    number = sum(len(x) for x in entry.tensors)
    yield Evidence(
        f"{entry} is the same in all {number} samples that were read, and goes into {entry.call}:"
        " the model can learn nothing from it",
        "let the dataset's __getitem__(self, index) use its index, and look at a batch",
        (entry.call.module,) if entry.call.module else (),
    )


def _is_equal(entry: Entry) -> bool:
    first: Tensor | None = None
    for x in entry.tensors:
        if not x.dim() or len(x) < _BATCH:
            return False
        first = x[0] if first is None else first
        if x.shape[1:] != first.shape or not bool((x == first).all()):
            return False
    return first is not None
