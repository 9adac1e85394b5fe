"""The samples of a split, each once, whatever a loader draws of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_practices._arguments import check_instance, check_whole

_BATCH = 64  # samples, for a batch sampler that doesn't say
_OF_ALL = (RandomSampler, SequentialSampler, WeightedRandomSampler, DistributedSampler)


def in_order(loader: DataLoader[Any], rank: int = 0, ranks: int = 1) -> DataLoader[Any]:
    """Return a loader of a rank's share of the samples of ``loader``, each once, in order.

    Statistics of a split are taken of such a loader: shuffling, weighted sampling, ``drop_last``
    and the padding of ``DistributedSampler`` don't change them. A sampler of a part of the dataset,
    such as ``SubsetRandomSampler``, gives that part.

    Args:
        loader: The loader, as a training loop would use it in one process.
        rank: Rank of this process.
        ranks: Number of processes.

    Raises:
        TypeError: If ``loader`` is no ``DataLoader``, or the others no whole numbers.
        ValueError: If ``rank`` is negative or ``ranks`` is below 1.

    Returns:
        The loader, or ``loader`` itself if its dataset is an ``IterableDataset``.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lightning_practices.data import in_order
        >>> [batch.tolist() for batch in in_order(DataLoader(range(5), 2, shuffle=True), 0, 2)]
        [[0, 2], [4]]
    """
    rank, ranks = check_whole("rank", rank, 0), check_whole("ranks", ranks, 1)
    check_instance("loader", loader, DataLoader, "a DataLoader")
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        return loader
    places = _places(loader)
    if places is None and ranks > 1:
        places = range(len(dataset))
    if places is not None:
        dataset = Subset(dataset, places[rank::ranks])
    has_batches = loader.batch_sampler is not None
    size = getattr(loader.batch_sampler, "batch_size", None) or _BATCH
    return DataLoader(
        dataset,
        size if has_batches else None,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
    )


def _places(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Return the samples that a loader can draw, ``None`` for all of its dataset.

    A sampler that restricts the dataset, such as one for the training indices of a whole dataset,
    counts. Weights and repetitions of samples don't.
    """
    sampler: Any = loader.sampler
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        return sorted({place for batch in batches for place in batch})
    if type(sampler) in _OF_ALL:
        return None
    if type(sampler) is SubsetRandomSampler:
        return sorted(set(sampler.indices))
    return sorted(set(sampler))
