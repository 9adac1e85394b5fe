"""A mask of 0 and 1 that is used as an index."""

from collections.abc import Iterator

import torch

from lightning_practices.advisor._kinds import PASSED
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_ORDERED = PASSED | {"sort", "argsort"}
_FEW = 4  # samples of a batch: fewer are hardly more than the classes 0 and 1


@rule(
    "LP355", "error",
    practice="A mask selects samples as booleans",
    measures="indices of outputs that are a tensor of the batch with a 0 or 1 for each sample",
    healthy="booleans, places of samples, and classes that select from a table",
    source="reports of partial likelihoods that index by the event; NumPy's guide to indexing:"
    " integers select places, booleans select where they are true",
)  # fmt: skip
def mask_as_index(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    for call in step.calls:
        found = _indexed(call) if id(call) in step.reach else None
        if found is None:
            continue
        value, index, zeros = found
        place = layer_of(value)
        yield Evidence(
            f"{call} selects from {value.shape[0]} samples by {index}, whose integers are 0 and 1:"
            f" it takes the first sample {zeros} times and the second for the others, and no other",
            "values[mask.bool()]",
            (place,) if place else (),
            {"samples": value.shape[0]},
        )
        return


def _indexed(call: Call) -> tuple[Value, str, int] | None:
    """Return what a mask is the index of, the mask's name, and its number of zeros."""
    if call.name not in ("__getitem__", "index_select", "take") or len(call.inputs) != 2:
        return None
    value, index = call.inputs
    if not (value.requires_grad and value.is_data and value.depth and index.is_data):
        return None
    is_mask = index.dtype in _INTEGERS - {torch.uint8} and len(index.shape) == 1
    if not is_mask or index.shape[0] < _FEW or value.shape[:1] != index.shape:
        return None
    if call.name == "__getitem__" and not (len(call.args) == 2 and _is_first(call.args[1], index)):
        return None
    if call.name == "index_select" and call.get(1, "dim") != 0:
        return None
    while index.call is not None and index.call.name in _ORDERED and index.call.inputs:
        if index.call.name == "argsort" or index.shape != index.call.inputs[0].shape:
            return None
        if index.call.name == "sort" and index is not index.call.output:
            return None
        index = index.call.inputs[0]
    tensor = index.tensor
    if not (index.source or "").startswith("batch") or tensor is None:
        return None
    if tensor.shape != value.shape[:1] or bool(((tensor != 0) & (tensor != 1)).any()):
        return None
    zeros = int((tensor == 0).sum())
    return (value, str(index.source), zeros) if 0 < zeros < tensor.numel() else None


def _is_first(given: object, index: Value) -> bool:
    """Whether a value is the index of the first dimension."""
    return given is index or (isinstance(given, tuple | list) and bool(given) and given[0] is index)
