"""A loader whose samples are augmented where they are loaded, in its worker processes if any.

The seed of each sample's draws travels with its index. So the draws are the same for any number of
worker processes, and the random state of the process doesn't matter to them.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count, repeat
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset
from typing_extensions import override

from lightning_practices._arguments import check_callable, check_instance, shown
from lightning_practices._delegation import Delegating
from lightning_practices._ranks import rank
from lightning_practices._seeds import hashed
from lightning_practices.data._augmentation.augmentation import HINT, Augmentation
from lightning_practices.data._augmentation.states import drawn_seed
from lightning_practices.data._entries import Entry, check_entry, item_of, with_item

IsOn = Callable[[], bool]  # says whether the pass over the samples that starts is augmented
_INSTEAD = "augment on the device instead, by augment_on='device' or Augmentation(...)(images)"


class SeededIndex(NamedTuple):
    """The index of a sample, and the seed of its draws; ``None`` to leave it as it is."""

    index: Any
    seed: int | None


class AugmentedDataset(Delegating, Dataset[Any]):
    """The samples of a dataset, augmented by the seeds that come with their indices."""

    _stands_for = "dataset"

    def __init__(self, dataset: Any, augmentation: Augmentation, entry: Entry) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.entry = entry

    @override
    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        for one in indices:
            if not isinstance(one, SeededIndex):
                raise TypeError(
                    f"augmented samples need a seed with their index, but got {shown(one)}: read"
                    " the loader of augmented_loader itself, and not its dataset by another"
                    f" sampler; or {_INSTEAD}"
                )
        fetch = getattr(self.dataset, "__getitems__", None)
        plain = [one.index for one in indices]
        samples = fetch(plain) if callable(fetch) else [self.dataset[one] for one in plain]
        return [
            sample if one.seed is None else self._augmented(sample, one.seed)
            for sample, one in zip(samples, indices, strict=True)
        ]

    def _augmented(self, sample: Any, seed: int) -> Any:
        image = item_of(sample, self.entry, HINT)
        return with_item(sample, self.entry, self.augmentation.augment_samples(image, seed))


def _seeds(is_on: IsOn | None) -> Iterator[int | None]:
    """Yield the seeds of the samples of a pass; ranks that draw alike get others."""
    if is_on is not None and not is_on():
        yield from repeat(None)
    base = drawn_seed(), rank()
    for position in count():
        yield hashed(*base, position)


def _with_seeds(batches: Iterable[Any], is_on: IsOn | None) -> Iterator[list[SeededIndex]]:
    """Yield batches of indices with the seeds of a pass."""
    seeds = _seeds(is_on)
    for batch in batches:
        yield [SeededIndex(index, next(seeds)) for index in batch]


class SeededBatchSampler(BatchSampler):
    """Batches of indices with seeds. Lightning makes it anew with the sampler of a rank."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool, is_on: IsOn | None) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.is_on = is_on

    @override
    def __iter__(self) -> Iterator[list[Any]]:
        return _with_seeds(super().__iter__(), self.is_on)


class SeededBatches(Delegating):
    """The batches of any batch sampler, with seeds."""

    _stands_for = "batch_sampler"

    def __init__(self, batch_sampler: Any, is_on: IsOn | None) -> None:
        self.batch_sampler = batch_sampler
        self.is_on = is_on

    def __iter__(self) -> Iterator[list[Any]]:
        return _with_seeds(self.batch_sampler, self.is_on)


class SeededIndices(Delegating):
    """The indices of a sampler, with seeds, for a loader that doesn't form batches."""

    _stands_for = "sampler"

    def __init__(self, sampler: Any, is_on: IsOn | None) -> None:
        self.sampler = sampler
        self.is_on = is_on

    def __iter__(self) -> Iterator[Any]:
        return map(SeededIndex, self.sampler, _seeds(self.is_on))


def augmented_loader(
    loader: DataLoader[Any],
    augmentation: Augmentation,
    entry: Entry = 0,
    is_on: IsOn | None = None,
) -> DataLoader[Any]:
    """Return a loader like another, whose samples are augmented where they are loaded.

    Each pass draws one number from torch's global generator in this process, and each sample's
    draws depend on this number, the rank and the sample's position. So the samples are the same for
    any number of worker processes, and a sample that is drawn twice is augmented twice. (With
    ``persistent_workers`` torch itself draws a number less in later passes, so that these differ
    from passes without it, in the order of the samples too.) The global
    generators of the processes that load samples are as without augmentation. MixUp and CutMix are
    left out: they need the batch, see :meth:`Augmentation.mix`.

    Args:
        loader: A ``DataLoader``, and no subclass of it, of a map-style dataset. Images may be
            tensors or PIL images.
        augmentation: The augmentation.
        entry: Where the image is in a sample: a position in a tuple, or a key of a dict.
        is_on: Says whether a pass over the samples is augmented, when it starts. Default: all are.

    Raises:
        TypeError: If ``loader`` is another one, or another argument has a wrong type.
        ValueError: If ``entry`` is an empty string.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lightning_practices.data import Augmentation, augmented_loader
        >>> images = torch.rand(64, 3, 32, 32)
        >>> plain = DataLoader([(image,) for image in images], batch_size=64)
        >>> [[batch]] = augmented_loader(plain, Augmentation("crop"))
        >>> batch.shape, torch.equal(batch, images)
        (torch.Size([64, 3, 32, 32]), False)
    """
    check_instance("augmentation", augmentation, Augmentation, "an Augmentation")
    check_entry(entry)
    if is_on is not None:
        check_callable("is_on", is_on)
    if type(loader) is not DataLoader:
        raise TypeError(
            "loader has to be a torch.utils.data.DataLoader, whose samples can be augmented where"
            f" they are loaded, but got {shown(loader)}, of class {type(loader).__name__}:"
            f" {_INSTEAD}"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"{type(loader.dataset).__name__} is an IterableDataset, whose samples have no index to"
            f" carry a seed: {_INSTEAD}"
        )
    made: DataLoader[Any] = DataLoader(
        AugmentedDataset(loader.dataset, Augmentation(augmentation), entry),
        **_sampler_of(loader, is_on),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory_device=loader.pin_memory_device,
        in_order=loader.in_order,
    )
    if loader.batch_sampler is not None:
        # The user's, by which Lightning decides whether to replace it. Torch would hold a default.
        vars(made)["sampler"] = loader.sampler
    return made


def _sampler_of(loader: DataLoader[Any], is_on: IsOn | None) -> dict[str, Any]:
    batches: Iterable[Any] | None = loader.batch_sampler
    if batches is None:
        return {"batch_size": None, "sampler": SeededIndices(loader.sampler, is_on)}
    if type(batches) is BatchSampler:
        own = SeededBatchSampler(batches.sampler, batches.batch_size, batches.drop_last, is_on)
        return {"batch_sampler": own}
    return {"batch_sampler": SeededBatches(batches, is_on)}
