"""The samples of a loader's dataset, which rules may read beyond the first batches."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from lightning_practices.advisor._isolation import isolated

_READ = 20_000  # samples, at most
_BYTES = 1 << 26  # of samples that are compared
_COLUMN = 1 << 24  # bytes of an entry that are measured
_SECONDS = 0.2  # for one reading
_LABELS, _FEWEST = 4096, 64  # samples that are read for their labels


@dataclass(eq=False)
class Samples:
    """The samples that a loader draws from a dataset with an index.

    Attributes:
        loader: The loader.
        dataset: The dataset from which all :class:`~torch.utils.data.Subset` select.
        places: The indices in :attr:`dataset` of the samples that the loader can draw.
        is_selected: Whether a ``Subset`` or a sampler has chosen the places.
        is_uniform: Whether an epoch has every sample equally often.
        is_shuffled: Whether an epoch has the samples in random order.
    """

    loader: DataLoader[Any]
    dataset: Any
    places: Tensor
    is_selected: bool
    is_uniform: bool
    is_shuffled: bool
    _labels: dict[str, Tensor | None] = field(default_factory=dict)
    _columns: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, loader: DataLoader[Any]) -> "Samples | None":
        """Return the samples of a loader; ``None`` if its sampler or its dataset isn't known."""
        dataset: Any = loader.dataset
        sampler: Any = loader.sampler
        if loader.batch_sampler is not None:
            if type(loader.batch_sampler) is not BatchSampler:
                return None
            sampler = loader.batch_sampler.sampler
        kinds = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
        is_indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if isinstance(dataset, IterableDataset) or not is_indexed or type(sampler) not in kinds:
            return None
        places = torch.arange(len(dataset))
        if isinstance(sampler, SubsetRandomSampler):
            places = torch.as_tensor(sampler.indices, dtype=torch.long)
        if isinstance(sampler, WeightedRandomSampler):
            places = sampler.weights[: len(dataset)].nonzero()[:, 0]
        is_selected = isinstance(sampler, SubsetRandomSampler)
        while isinstance(dataset, Subset):
            places = torch.as_tensor(np.asarray(dataset.indices), dtype=torch.long)[places]
            dataset, is_selected = dataset.dataset, True
        is_uniform = not isinstance(sampler, WeightedRandomSampler)
        is_shuffled = not isinstance(sampler, SequentialSampler)
        return cls(loader, dataset, places, is_selected, is_uniform, is_shuffled)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def keeps_structure(self) -> bool:
        """Whether an entry of a batch holds the same entry of each sample."""
        return self.loader.batch_size is not None and self.loader.collate_fn is default_collate

    def read(self, places: Sequence[int] | Tensor, seconds: float = _SECONDS) -> list[Any]:
        """Return samples of :attr:`dataset`, as many as the time allows. Random states stay."""
        found = []
        end = time.perf_counter() + seconds
        with isolated(self.loader):
            for place in places:
                if time.perf_counter() > end:
                    break
                found.append(self.dataset[int(place)])
        return found

    def spread(self, number: int) -> Tensor:
        """Return so many of :attr:`places`, at equal distances."""
        if len(self) <= number:
            return self.places
        return self.places[torch.linspace(0, len(self) - 1, number).long()]

    def column(self, source: str) -> Tensor | None:
        """Return an entry of all samples, or of 16 MiB of them, without reading one by one.

        ``None`` if the dataset isn't one of tensors.

        Args:
            source: The entry, such as ``"batch[1]"``.
        """
        if not isinstance(self.dataset, TensorDataset) or not self.keeps_structure:
            return None
        for index, x in enumerate(self.dataset.tensors):
            if source == f"batch[{index}]":
                if source not in self._columns:
                    size = x[0].numel() * x.element_size() if len(x) else 1
                    self._columns[source] = x[self.spread(max(_COLUMN // max(size, 1), 1))]
                return self._columns[source]
        return None

    def labels(self, source: str) -> Tensor | None:
        """Return an entry of all samples, or of as many as the time allows, drawn at random."""
        if source not in self._labels:
            column = self.column(source)
            self._labels[source] = self._read_labels(source) if column is None else column
        return self._labels[source]

    def _read_labels(self, source: str) -> Tensor | None:
        if not self.keeps_structure:
            return None
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        places = self.places[order[:_LABELS]]
        read = [entry_of(sample, source) for sample in self.read(places)]
        if len(read) < min(_FEWEST, len(self)) or not all(_is_number(one) for one in read):
            return None
        first = torch.as_tensor(read)
        for name in ("targets", "labels"):
            known = getattr(self.dataset, name, None)
            if isinstance(known, list | Tensor | np.ndarray) and len(known) == len(self.dataset):
                known = torch.as_tensor(np.asarray(known))
                if torch.equal(known[places[: len(read)]], first):
                    return known[self.places]
        return first

    @cached_property
    def digests(self) -> list[int] | None:
        """A hash of each of the first samples, as many as the time allows; ``None`` if unknown."""
        order = self.places[:_READ]
        if isinstance(self.dataset, TensorDataset):
            sizes = [x[0].numel() * x.element_size() for x in self.dataset.tensors if len(x)]
            order = order[: _BYTES // max(sum(sizes), 1)]
            return _hashes_of_rows(self.dataset.tensors, order)
        # Samples that are drawn anew at each reading have no identity.
        twice = [digest(sample) for sample in self.read([*order[:2], *order[:2]])]
        if twice[:2] != twice[2:]:
            return None
        found = [digest(sample) for sample in self.read(order)]
        return None if None in found else [one for one in found if one is not None]


def entry_of(batch: Any, source: str) -> Any:
    """Return the entry of a batch or sample that has this source, such as ``"batch[0]"``."""
    for path, x in tree_flatten_with_path(batch)[0]:
        if source == f"batch{keystr(path)}":
            return x
    return None


def digest(sample: Any) -> int | None:
    """Return a hash of all that a sample holds; ``None`` if a part of it can't be hashed."""
    parts: list[Any] = []
    for one in tree_leaves(sample):
        if isinstance(one, Tensor):
            one = one.detach().cpu()
            one = one.view(torch.uint8) if one.dtype == torch.bfloat16 and one.dim() else one
            one = one.to_dense().float() if one.layout != torch.strided else one
            parts.append((str(one.dtype), tuple(one.shape), one.numpy().tobytes()))
        elif hasattr(one, "tobytes"):
            parts.append(one.tobytes())
        elif isinstance(one, str | bytes | int | float | None):
            parts.append(one)
        else:
            return None
    return hash(tuple(parts))


def digests_of_rows(batch: Any) -> list[int]:
    """Return a hash of each sample of a batch, by the rows of its tensors."""
    tensors = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim()]
    if len({len(x) for x in tensors}) != 1:
        return []
    dense = [x if x.layout == torch.strided else x.to_dense() for x in tensors]
    return _hashes_of_rows(dense, torch.arange(len(dense[0])))


def _hashes_of_rows(columns: Sequence[Tensor], places: Tensor) -> list[int]:
    """Return a hash of each of these rows of all columns."""
    if any(x.device.type != "cpu" for x in columns):
        columns, places = [x[places].cpu() for x in columns], torch.arange(len(places))
    kind = hash(tuple((str(x.dtype), tuple(x.shape[1:])) for x in columns))
    columns = [x.view(torch.int16) if x.dtype == torch.bfloat16 else x for x in columns]
    rows = [x.detach().numpy() for x in columns]
    return [hash((kind, *(x[i].tobytes() for x in rows))) for i in places.tolist()]


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor | np.generic):
        return value.ndim == 0
    return isinstance(value, int | float)
