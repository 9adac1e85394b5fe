"""A loader of the training data whose iterator can start at any batch."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Self

import torch
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from torch.utils.data import DataLoader, DistributedSampler

from lightning_practices.callbacks._exact_resume.indices import Indices
from lightning_practices.callbacks._exact_resume.random_states import (
    Generator,
    generators_within,
    random_states,
    set_random_states,
    set_states,
    states_of,
)
from lightning_practices.callbacks._exact_resume.reasons import (
    has_own_generators,
    has_torchs_iterator,
    is_stateful,
)


class ResumableLoader:
    """A loader of the training data whose iterator can start at any batch.

    The iterator of the user's loader, and its worker processes, are made when :meth:`start` is
    called, or at the first batch. Where torch's ``DataLoader`` reads a map-style dataset, the
    sampler's first batches of indices are skipped, and no skipped sample is read. Any other loader
    reads its first batches again.

    Args:
        loader: The user's loader. It stays unchanged.
        rank: Rank of this process. Worker processes of different ranks draw different numbers.
    """

    def __init__(self, loader: Any, rank: int) -> None:
        self.loader = loader
        self._rank = rank
        self.passes = 0  # iterators made up to now
        self._drawn = 0  # batches of the present iterator
        self._before: dict[str, Any] = {}  # random states just before it was made
        self._resumed: Mapping[str, Any] | None = None
        self._batches = _Batches(self)
        self._own: DataLoader[Any] | None = None
        self._indices: Indices | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # in a copy that is being made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self._batches = _Batches(self)
        return self._batches

    def start(self) -> None:
        """Make the iterator of the user's loader, and start its worker processes."""
        self._batches.start()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as primitives and tensors."""
        return {"passes": self.passes, "drawn": self._drawn, **self._before}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Start the next iterator at a saved position."""
        self._resumed = state_dict

    def generators(self) -> list[Generator]:
        """Return the generators that the loader and its sampler hold.

        Without worker processes those of the dataset are included. Worker processes have copies.
        """
        names = ["generator", "sampler", "batch_sampler"]
        if getattr(self.loader, "num_workers", 0) == 0:
            names += ["dataset", "collate_fn"]
        return generators_within(*(getattr(self.loader, name, None) for name in names))

    @property
    def seed(self) -> int | None:
        """The seed of the ``DistributedSampler``; ``None`` without one."""
        sampler = self._distributed_sampler()
        return None if sampler is None else sampler.seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        sampler = self._distributed_sampler()
        if sampler is not None and seed is not None:
            sampler.seed = seed

    def close(self) -> None:
        """End the worker processes."""
        self._batches = _Batches(self)
        if self._own is not None:
            _shutdown_workers_and_reset_iterator(self._own)

    def begin(self) -> Iterator[Any]:
        """Make the iterator of the user's loader, at the saved position if there is one."""
        resumed, self._resumed = self._resumed, None
        skip = 0
        if resumed is not None:
            self.passes, skip = resumed["passes"] - 1, resumed["drawn"]
            set_random_states(resumed["states"], ())
            set_states(self.generators(), resumed["generators"])
        self._before = {"states": random_states(()), "generators": states_of(self.generators())}
        batches = self._iterator(skip)
        self.passes += 1
        self._drawn = skip
        return batches

    def drawn(self) -> None:
        """Count one batch."""
        self._drawn += 1

    def _distributed_sampler(self) -> DistributedSampler[Any] | None:
        within = getattr(getattr(self.loader, "batch_sampler", None), "sampler", None)
        for sampler in (getattr(self.loader, "sampler", None), within):
            if isinstance(sampler, DistributedSampler):
                return sampler
        return None

    def _iterator(self, skip: int) -> Iterator[Any]:
        loader = self.loader
        if not has_torchs_iterator(loader) or is_stateful(loader):
            return _after(iter(loader), 0 if is_stateful(loader) else skip)
        replay = has_own_generators(loader)  # which advance with the samples that are read
        own, indices = self._loader_of_ours()
        if loader.num_workers:
            indices.seed = (_next_seed(loader.generator), self._rank)
        indices.skip = 0 if replay else skip
        batches = iter(own)
        if skip and not loader.num_workers:
            indices.advance()  # before the random states of the checkpoint are restored
        return _after(batches, skip if replay else 0)

    def _loader_of_ours(self) -> tuple[DataLoader[Any], Indices]:
        """Return a loader that is as the user's, but for its indices."""
        if self._own is not None and self._indices is not None and self._own.persistent_workers:
            return self._own, self._indices
        loader: DataLoader[Any] = self.loader
        forms_batches = loader.batch_sampler is not None
        self._indices = Indices(loader.batch_sampler if forms_batches else loader.sampler)  # type: ignore[arg-type]
        # Persistent workers get their seed at the first pass alone, so a resumed fit mustn't draw
        # a seed at a later one.
        draws_seed = self.passes == 0 or not loader.persistent_workers
        self._own = DataLoader(
            loader.dataset,
            **{"batch_sampler" if forms_batches else "sampler": self._indices},  # type: ignore[arg-type]
            **({} if forms_batches else {"batch_size": None}),  # type: ignore[arg-type]
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator if draws_seed else torch.Generator(),
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            pin_memory_device=loader.pin_memory_device,
            in_order=loader.in_order,
        )
        return self._own, self._indices


class _Batches(Iterator[Any]):
    """An iterator of a loader that starts at its first batch, or before."""

    def __init__(self, owner: ResumableLoader) -> None:
        self._owner = owner
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Self:
        return self

    def start(self) -> Iterator[Any]:
        if self._batches is None:
            self._batches = self._owner.begin()
        return self._batches

    def __next__(self) -> Any:
        batch = next(self.start())
        self._owner.drawn()
        return batch


def _after(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """Read ``count`` batches, and return the iterator."""
    for _ in islice(batches, count):
        pass
    return batches


def _next_seed(generator: torch.Generator | None) -> int:
    """Return the number that a generator draws next, without a draw. Default: torch's generator."""
    copy = torch.Generator()
    copy.set_state((generator or torch.default_generator).get_state())
    return int(torch.empty((), dtype=torch.int64).random_(generator=copy).item())
