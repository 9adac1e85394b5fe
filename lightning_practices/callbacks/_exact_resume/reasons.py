"""What can't be resumed exactly, and the remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.types import _Stateful
from torch.utils.data import DataLoader, IterableDataset

from lightning_practices._random_states import generators_within

_REMEDY = (
    "give the loader state_dict and load_state_dict, as torchdata's StatefulDataLoader has, which"
    " uses those of the dataset"
)


def is_stateful(loader: Any) -> bool:
    """Say whether the loader saves and restores its position itself."""
    return isinstance(loader, _Stateful)


def has_torchs_iterator(loader: Any) -> bool:
    """Say whether a loader's iterator is torch's for map-style datasets."""
    kind = type(loader)
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and kind.__iter__ is DataLoader.__iter__
        and kind._get_iterator is DataLoader._get_iterator
        and kind._index_sampler is DataLoader._index_sampler
    )


def has_own_generators(loader: Any) -> bool:
    """Say whether worker processes have copies of generators that the dataset holds."""
    workers = getattr(loader, "num_workers", 0)
    held = {"dataset": loader.dataset, "collate_fn": loader.collate_fn} if workers > 0 else {}
    return bool(generators_within(held))


def why_inexact(loader: Any) -> str | None:
    """Say why the rest of an epoch of ``loader`` may differ after a resume, and the remedy.

    Returns:
        The reason and the remedy; ``None`` if the rest is exact, or up to the loader itself.
    """
    if is_stateful(loader) or isinstance(loader, Sequence):
        return None
    name = type(loader).__name__
    if not isinstance(loader, DataLoader):
        return f"{name} is no DataLoader, so its first batches are read again: {_REMEDY}"
    if isinstance(loader.dataset, IterableDataset):
        kind = type(loader.dataset).__name__
        return (
            f"{kind} is an IterableDataset, so its first samples are read again, and are the same"
            f" only if nothing else decides about them than worker processes' generators: {_REMEDY}"
        )
    if not has_torchs_iterator(loader):
        return f"{name} has an iterator of its own, so its first batches are read again: {_REMEDY}"
    if loader.num_workers > 1 and not loader.in_order:
        return f"{name}(in_order=False) gives batches in another order each time: set in_order=True"
    if has_own_generators(loader) and loader.persistent_workers:
        return (
            f"the dataset of {name} holds random number generators, whose copies in persistent"
            " workers aren't saved: draw from torch's, NumPy's or Python's global generator, or set"
            " persistent_workers=False"
        )
    return None


def description(loader: Any) -> dict[str, Any]:
    """Return the settings of a loader that have to be the same after a resume."""
    workers = getattr(loader, "num_workers", 0)
    return {
        "batch_size": getattr(loader, "batch_size", None),
        "num_workers": "0" if workers == 0 else "1 or more",
    }


def changes(saved: Sequence[Mapping[str, Any]], loaders: Sequence[Any]) -> list[str]:
    """Return the settings of the loaders that have changed, each as ``"name: before, now"``."""
    return [
        f"{name}: {before[name]} when it was saved, {now} now"
        for before, loader in zip(saved, loaders, strict=True)
        for name, now in description(loader).items()
        if before[name] != now
    ]
