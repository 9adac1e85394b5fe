"""The indices of a loader's batches, from any batch on, with seeds for worker processes."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from lightning_practices._seeds import hashed, seed_generators


class SeededIndices:
    """The indices of one batch, on their way to a worker process, which they seed on arrival.

    Torch seeds a worker process once, when it starts, so the random numbers for a batch depend on
    the batches that the process has loaded before. With a seed for each batch they depend only on
    the batch's position in the epoch, and any process can load any batch.

    The worker process calls :func:`_seeded` when it unpickles this object, right before it loads
    the batch, and gets the plain indices. So the dataset, the sampler and ``collate_fn`` are
    the user's own objects.
    """

    def __init__(self, indices: Any, seed: int) -> None:
        self._indices = indices
        self._seed = seed

    def __reduce__(self) -> tuple[Any, ...]:
        return _seeded, (self._indices, self._seed)


class Indices:
    """The batches of indices of a sampler, of which the next pass may skip the first.

    Args:
        sampler: The loader's batch sampler, or its sampler if it doesn't form batches.
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        self._sampler = sampler
        self.skip = 0
        """The number of batches that the next pass skips."""
        self.seed: tuple[int, ...] | None = None
        """The numbers that seed the worker processes in the next pass; ``None``: no seeds."""

        self._latest: _Pass | None = None

    def __iter__(self) -> "_Pass":
        self._latest = _Pass(iter(self._sampler), self.skip, self.seed)
        return self._latest

    def advance(self) -> None:
        """Skip the first batches of the latest pass now, rather than at its first batch."""
        if self._latest is not None:
            self._latest.advance()

    def close(self) -> None:
        """Forget the latest pass, which holds the sampler's iterator."""
        self._latest = None

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]  # as in torch, it may lack a length


class _Pass(Iterator[Any]):
    def __init__(self, batches: Iterator[Any], skip: int, seed: tuple[int, ...] | None) -> None:
        self._batches = batches
        self._skip = skip
        self._seed = seed
        self._position = 0

    def advance(self) -> None:
        for _ in islice(self._batches, self._skip - self._position):
            self._position += 1

    def __next__(self) -> Any:
        if self._position < self._skip:
            self.advance()
        indices = next(self._batches)
        position, self._position = self._position, self._position + 1
        return (
            indices if self._seed is None else SeededIndices(indices, hashed(*self._seed, position))
        )


def _seeded(indices: Any, seed: int) -> Any:
    """Seed the generators of this worker process, and return the indices."""
    seed_generators(seed)
    return indices
