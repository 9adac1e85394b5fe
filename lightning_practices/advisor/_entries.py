"""The entries of batches that reach first layers as inputs and losses as targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_practices.advisor._observation import Observation, Split, once
from lightning_practices.advisor._samples import entry_of
from lightning_practices.advisor._trace import Call, Loss, Value

# Functions whose result holds all elements of their argument, and nothing else.
_WHOLE = frozenset(
    {"reshape", "view", "squeeze", "unsqueeze", "flatten", "unflatten", "permute", "transpose", "t",
     "movedim", "moveaxis", "contiguous", "clone", "view_as", "reshape_as", "ravel", "float",
     "double", "half", "bfloat16", "to", "type", "type_as", "cpu", "cuda", "long", "int"}
)  # fmt: skip
_SPREAD = 256  # samples that are read for their distribution
_HANDLES = frozenset({"isnan", "isfinite", "isinf", "nan_to_num", "nanmean", "nansum", "where"})


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor that a first layer gets as input, or a loss as target.

    Attributes:
        call: The layer or the loss.
        value: The tensor in the first training step.
        source: The entry of the batch, such as ``"batch[0]"``, of which it holds all elements and
            nothing else; ``None`` if it was computed.
        tensors: The entry in all train batches that were read; the tensor of the step alone if it
            was computed.
    """

    call: Call
    value: Value
    source: str | None
    tensors: list[Tensor]

    def __str__(self) -> str:
        maker = self.value.maker()
        return f"the output of {maker}" if maker else self.value.origin().source or "the input"

    @cached_property
    def rows(self) -> Tensor | None:
        """All rows in one tensor, in the shape that the layer gets; ``None`` if they differ."""
        tensor = self.value.tensor
        if tensor is None or not tensor.dim():
            return None
        if self.source is None:
            return tensor
        shapes = {x.shape[1:] for x in self.tensors}
        if len(shapes) != 1 or not all(x.dim() for x in self.tensors):
            return None
        rows = torch.cat(self.tensors)
        per_row = tensor[0].numel() if len(tensor) else 0
        if not per_row or rows.numel() != len(rows) * per_row:
            return None
        return rows.reshape(len(rows), *tensor.shape[1:])


@once
def all_inputs_of(seen: Observation) -> list[Entry]:
    """Return the inputs of first layers, each once, in the order of the calls."""
    found: dict[int, Entry] = {}
    for call, value in seen.step.first_layers:
        if value.tensor is not None and value.tensor.numel():
            found.setdefault(id(value.origin()), _entry(seen, call, value))
    return list(found.values())


def inputs_of(seen: Observation) -> list[Entry]:
    """Return the floating point inputs of first layers."""
    return [one for one in all_inputs_of(seen) if one.value.dtype.is_floating_point]


@once
def targets_of(seen: Observation) -> list[tuple[Loss, Entry]]:
    """Return the targets of losses that come from the batch, with the losses."""
    return [
        (loss, _entry(seen, loss.call, loss.target))
        for loss in seen.step.losses
        if loss.target.is_data and not loss.target.requires_grad
    ]


def handles_missing(seen: Observation) -> bool:
    """Whether the step calls a function that tells missing values from others."""
    return any(call.name in _HANDLES for call in seen.step.calls)


def entries(split: Split, source: str) -> list[Tensor]:
    """Return an entry in the batches of a split, as received, where it is a tensor."""
    found = (entry_of(batch.received, source) for batch in split.batches)
    return [x.detach() for x in found if isinstance(x, Tensor)]


def spread_entries(split: Split, source: str) -> list[Tensor]:
    """Return an entry of samples from all of a split, in one tensor, or of its first batches."""
    samples = split.samples
    if samples is not None and samples.keeps_structure and is_as_loaded(split, source):
        read = [entry_of(sample, source) for sample in samples.read(samples.spread(_SPREAD))]
        found = [x for x in read if isinstance(x, Tensor)]
        if len(found) == len(read) and len({x.shape for x in found}) == 1:
            return [torch.stack(found)]
    return entries(split, source)


def is_as_loaded(split: Split, source: str) -> bool:
    """Whether no hook changes an entry between its loader and a step."""
    if not split.batches:
        return False
    first = split.batches[0]
    loaded, received = (entry_of(one, source) for one in (first.loaded, first.received))
    if not isinstance(loaded, Tensor) or not isinstance(received, Tensor):
        return False
    loaded, received = loaded.cpu(), received.cpu()
    is_same = loaded.shape == received.shape and loaded.dtype == received.dtype
    return is_same and torch.allclose(loaded, received, rtol=0, atol=0, equal_nan=True)


def sources_before(value: Value) -> set[str]:
    """Return the entries of the batch on which a value depends."""
    inputs = [value, *(x for call in value.before() for x in call.inputs)]
    return {x.source for x in inputs if x.source is not None and x.source.startswith("batch")}


def _entry(seen: Observation, call: Call, value: Value) -> Entry:
    source = _whole_source(value)
    tensors = entries(seen.train, source) if source else []
    if not tensors:
        source, tensors = None, [x for x in [value.tensor] if x is not None]
    return Entry(call, value, source, tensors)


def _whole_source(value: Value) -> str | None:
    if not all(made.name in _WHOLE or _adds_dimensions(made) for made in _makers(value)):
        return None
    source = value.origin().source or ""
    return source if source.startswith("batch") else None


def _adds_dimensions(call: Call) -> bool:
    """Whether a call is an indexing as ``y[:, None]``, which leaves all elements."""
    index = call.get(1, "index")
    items = index if isinstance(index, tuple) else (index,)
    return call.name == "__getitem__" and all(x in (None, ..., slice(None)) for x in items)


def _makers(value: Value) -> Iterator[Call]:
    while value.call is not None:
        yield value.call
        if not value.call.inputs:
            return
        value = value.call.inputs[0]
