"""A loader of the training data whose iterator can start at any batch."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Self

import torch
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from torch.utils.data import DataLoader, DistributedSampler

from lightning_practices._delegation import Delegating
from lightning_practices._random_states import (
    Generator,
    generators_within,
    random_states,
    set_random_states,
    set_states,
    states_of,
)
from lightning_practices.callbacks._exact_resume.indices import Indices
from lightning_practices.callbacks._exact_resume.reasons import (
    has_own_generators,
    has_torchs_iterator,
    is_stateful,
)


class ResumableLoader(Delegating):
    """A loader of the training data whose iterator can start at any batch.

    The iterator of the user's loader, and its worker processes, are made when :meth:`start` is
    called, or at the first batch. Where torch's ``DataLoader`` reads a map-style dataset, the
    sampler's first batches of indices are skipped, and no skipped sample is read. Any other loader
    reads its first batches again.

    Args:
        loader: The user's loader. It stays unchanged.
        rank: Rank of this process. Worker processes of different ranks draw different numbers.
    """

    _stands_for = "loader"

    def __init__(self, loader: Any, rank: int) -> None:
        self.loader = loader
        self._rank = rank
        self.passes = 0  # iterators made up to now
        self._drawn = 0  # batches of the present iterator
        self._before: dict[str, Any] = {}  # random states just before it was made
        self._first: dict[str, Any] | None = None  # those just before its first batch
        self._known: dict[str, Generator] = {}  # the generators that the latest search found
        self.unmatched: set[str] = set()
        """Names of generators that a resumed fit has and its checkpoint hasn't, or the reverse."""

        self._resumed: Mapping[str, Any] | None = None
        self._batches = _Batches(self)
        self._own: DataLoader[Any] | None = None
        self._indices: Indices | None = None

    def __iter__(self) -> Iterator[Any]:
        self._batches = _Batches(self)
        return self._batches

    def start(self) -> None:
        """Make the iterator of the user's loader, and start its worker processes."""
        self._batches.start()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as primitives and tensors."""
        positions = {"passes": self.passes, "drawn": self._drawn}
        return {**positions, "before": self._before, "first": self._first}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Start the next iterator at a saved position."""
        self._resumed = state_dict

    def generator_states(self, search: bool = False) -> dict[str, Any]:
        """Return the states of the generators that the loader and its sampler hold, by name.

        Without worker processes those of the dataset are included. Worker processes have copies.

        Args:
            search: Whether to search them. Default: those that the latest search found. There is
                a search before and after the first batch, as a dataset or sampler may make a
                generator then.
        """
        if search:
            self._known = generators_within(self._holders())
        return states_of(self._known)

    def set_generators(self, states: Mapping[str, Any]) -> set[str]:
        """Set these generators to states that :meth:`generator_states` has returned.

        Returns:
            The names of generators that have no state, and of states that have no generator.
        """
        self._known = generators_within(self._holders())
        return set_states(self._known, states)

    def _holders(self) -> dict[str, Any]:
        loader = self.loader
        if not isinstance(loader, DataLoader):
            return {"loader": loader}
        names = ["generator", "sampler", "batch_sampler"]
        if loader.num_workers == 0:
            names = ["dataset", "collate_fn", *names]  # a sampler may hold the dataset too
        return {name: getattr(loader, name) for name in names}

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
        """End the worker processes, and leave no generator object, which can't be copied."""
        self._batches = _Batches(self)
        if self._indices is not None:
            self._indices.close()
        if self._own is not None:
            _shutdown_workers_and_reset_iterator(self._own)

    def begin(self) -> Iterator[Any]:
        """Make the iterator of the user's loader, at the saved position if there is one."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            self.passes = resumed["passes"] - 1
            self._set(resumed["before"])
        self._before = self._now()
        self._drawn, self._first = (resumed["drawn"], resumed["first"]) if resumed else (0, None)
        batches = self._iterator(self._drawn)
        self.passes += 1
        return batches

    def drawn(self) -> None:
        """Count one batch."""
        self._drawn += 1
        if self._drawn == 1:
            self._known = generators_within(self._holders())

    def note_first(self) -> None:
        """Note the random states just before the first batch of the present iterator."""
        if self._drawn == 0:
            self._first = self._now()

    def _now(self) -> dict[str, Any]:
        return {"states": random_states(()), "generators": self.generator_states(search=True)}

    def _set(self, moment: Mapping[str, Any]) -> None:
        set_random_states(moment["states"], ())
        self.unmatched |= self.set_generators(moment["generators"])

    def _distributed_sampler(self) -> DistributedSampler[Any] | None:
        within = getattr(getattr(self.loader, "batch_sampler", None), "sampler", None)
        for sampler in (getattr(self.loader, "sampler", None), within):
            if isinstance(sampler, DistributedSampler):
                return sampler
        return None

    def _iterator(self, skip: int) -> Iterator[Any]:
        loader = self.loader
        if is_stateful(loader):
            return iter(loader)
        if not has_torchs_iterator(loader):
            return self._after(iter(loader), skip)
        replay = has_own_generators(loader)  # which advance with the samples that are read
        own, indices = self._loader_of_ours()
        if loader.num_workers:
            indices.seed = (_next_seed(loader.generator), self._rank)
        indices.skip = 0 if replay else skip
        batches = iter(own)
        if loader.num_workers:
            return self._after(batches, skip if replay else 0)
        if skip:
            self._restore_first()
            indices.advance()  # before the random states of the checkpoint are restored
        return batches

    def _after(self, batches: Iterator[Any], count: int) -> Iterator[Any]:
        """Read ``count`` batches, and return the iterator."""
        if count:
            self._restore_first()
        for _ in islice(batches, count):
            pass
        return batches

    def _restore_first(self) -> None:
        """Restore the random states that the skipped first batch was drawn with.

        Between the making of an iterator and its first batch other loaders make theirs.
        """
        if self._first is not None and not getattr(self.loader, "num_workers", 0):
            self._set(self._first)

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
        batches = self.start()
        self._owner.note_first()
        batch = next(batches)
        self._owner.drawn()
        return batch


def _next_seed(generator: torch.Generator | None) -> int:
    """Return the number that a generator draws next, without a draw. Default: torch's generator."""
    copy = torch.Generator()
    copy.set_state((generator or torch.default_generator).get_state())
    return int(torch.empty((), dtype=torch.int64).random_(generator=copy).item())
