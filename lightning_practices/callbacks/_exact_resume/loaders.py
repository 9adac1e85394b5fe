"""The training data of a fit, whose epoch can start at any batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from typing_extensions import override

from lightning_practices._packages import OfBothPackages, either
from lightning_practices.callbacks._exact_resume.loader import ResumableLoader
from lightning_practices.callbacks._exact_resume.reasons import is_stateful


class ResumableLoaders(OfBothPackages, CombinedLoader):
    """Lightning's combination of loaders, whose iterators are made at the first batch.

    By then all hooks before the first batch have run, the Trainer has restored its progress, and
    the samplers know their epoch. Lightning itself calls ``iter`` earlier, and several times.

    Args:
        iterables: The user's loader, or a collection of loaders.
        mode: How they are combined, see :class:`~lightning.pytorch.utilities.CombinedLoader`.
        rank: Rank of this process.
        at_iter: Called when Lightning calls ``iter``.
        at_start: Called before the first batch of an epoch. It has to call :meth:`start`.
    """

    def __init__(
        self,
        iterables: Any,
        mode: Any,
        rank: int,
        at_iter: Callable[[], None],
        at_start: Callable[["ResumableLoaders"], None],
    ) -> None:
        super().__init__(iterables, mode)
        self._rank = rank
        self._at_iter = at_iter
        self._at_start = at_start
        self.users: CombinedLoader | None = None
        """The combination of the user's that this one stands for; its ``len()`` works in hooks."""

        self._started = False
        self._drawn = 0  # batches of this epoch
        self._positions: dict[int, list[dict[str, Any]]] = {}  # by batches drawn, the newest

    @property
    def loaders(self) -> list[ResumableLoader]:
        """The loaders; empty before the first ``iter``."""
        return [one for one in self.flattened if isinstance(one, ResumableLoader)]

    @override
    def __iter__(self) -> Self:
        if not self.loaders:
            # From here on Lightning finds loaders that are stateful. ``iterables`` are the user's.
            self._flattened = [ResumableLoader(one, self._rank) for one in self.flattened]
        self._at_iter()
        super().__iter__()
        if self.users is not None:
            self.users._iterator = self._iterator
        self._started = False
        self._positions.clear()
        return self

    @override
    def __next__(self) -> Any:
        if not self._started:
            self._at_start(self)
        batch = super().__next__()
        self._drawn += 1
        self._note_position()
        return batch

    def start(self, drawn: int = 0, positions: Sequence[Mapping[str, Any]] = ()) -> None:
        """Make the loaders' iterators.

        Args:
            drawn: The number of batches that the epoch has already had.
            positions: The positions of the loaders after these batches.
        """
        self._started = True
        for loader, position in zip(self.loaders, positions, strict=False):
            loader.load_state_dict(position)
        for loader in self.loaders:
            loader.start()
        self._drawn = drawn
        self._note_position()

    def positions_after(self, batches: int) -> list[dict[str, Any]] | None:
        """Return the positions of the loaders after so many batches of this epoch.

        Returns:
            The positions; ``None`` if the epoch hasn't started, or is farther by several batches.
        """
        return self._positions.get(batches)

    @override
    def reset(self) -> None:
        super().reset()
        if self.users is not None:
            self.users._iterator = None
        for loader in self.loaders:
            loader.close()

    @override
    def _state_dicts(self) -> list[dict[str, Any]]:
        # The states that Lightning saves, of the user's loaders alone.
        users = [one.loader for one in self.loaders]
        return [one.state_dict() for one in users if is_stateful(one)]

    def _note_position(self) -> None:
        self._positions[self._drawn] = [loader.state_dict() for loader in self.loaders]
        # Lightning draws a batch ahead where the number of batches isn't known.
        self._positions.pop(self._drawn - 2, None)


class ResumableSource:
    """Where a Trainer gets its training data from, combined as :class:`ResumableLoaders`.

    Args:
        source: The Trainer's own source: a module or datamodule with a hook, or the loaders.
        combine: Makes the combination, from the loaders and the mode.
    """

    def __init__(self, source: Any, combine: Callable[[Any, str], ResumableLoaders]) -> None:
        self.source = source
        self.combine = combine

    @property
    def instance(self) -> Any:
        """The module, the datamodule or the loaders; the Trainer sets it for each fit."""
        return self.source.instance

    @instance.setter
    def instance(self, value: Any) -> None:
        self.source.instance = value

    @property
    def name(self) -> str:
        """Name of the hook."""
        return str(self.source.name)

    def is_defined(self) -> bool:
        """Say whether there are loaders, or a hook for them."""
        return bool(self.source.is_defined())

    def is_module(self) -> bool:
        """Say whether the loaders come from the hook of a module or datamodule."""
        return bool(self.source.is_module())

    def dataloader(self) -> Any:
        """Return the loaders of the source, combined."""
        loaders = self.source.dataloader()
        if not isinstance(loaders, either(CombinedLoader)):
            return self.combine(loaders, "max_size_cycle")  # Lightning's default
        if type(loaders) in either(CombinedLoader):
            combined = self.combine(loaders.iterables, loaders._mode)
            combined.users = loaders
            return combined
        return loaders  # a subclass of the user's
