"""Lists and tensors in which outputs of earlier epochs stay."""

from collections import deque
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_practices._codes import codes_of, read_by
from lightning_practices.advisor import Kept

_HOOKS = {
    "validation": ("on_validation_epoch_end", "on_validation_end"),
    "training": ("on_train_epoch_end",),
}
_TRAINS = ("training_step", "on_train_batch_start", "on_train_epoch_start", "train_dataloader")
_SHOWS = ("log", "log_dict", "print", "add_scalar", "add_scalars", "info")
_FEWEST = 2  # batches: the result of an epoch can't be told from that of a single batch
_SCALARS = 4  # numbers of a batch, that are more than its loss and some metrics
_LIBRARIES = ("lightning", "pytorch_lightning", "torch")


class _Size(NamedTuple):
    entries: int
    is_of_arrays: bool


class Outputs:
    """Follows the attributes of the module and of own callbacks from epoch to epoch.

    An attribute holds outputs of earlier epochs if each batch adds arrays to it, if it still has
    all that it had at the end of the epoch before when the next one's first batch begins, and if a
    hook at the end of the epoch reads and shows it. Single numbers may be a history. What a
    training step reads too is a memory to learn from, and a length shows none of the outputs.

    Args:
        split: ``"validation"`` or ``"training"``.

    Attributes:
        epochs: The number of epochs in a row for which each attribute kept the ones before.
    """

    def __init__(self, split: str) -> None:
        self._split = split
        self._begun: dict[tuple[int, str], _Size] = {}
        self._ended: dict[tuple[int, str], _Size] = {}
        self._batches = 0
        self._shown: dict[type, set[str]] = {}
        self.epochs: dict[Kept, int] = {}

    def begin_batch(self, trainer: Trainer, module: LightningModule, *, is_first: bool) -> None:
        """Note the sizes, if this is the first batch of an epoch."""
        if is_first:
            self._batches = 0
            self._begun = {key: size for _, key, size in self._sizes(trainer, module)}
        self._batches += 1

    def end_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare the sizes with those at the start and of the epoch before."""
        if self._batches < _FEWEST:
            return
        found, ended = {}, {}
        for owner, key, size in self._sizes(trainer, module):
            begun, before = self._begun.get(key), self._ended.get(key)
            ended[key] = size
            if begun is None or before is None or begun.entries < before.entries:
                continue
            if self._gains(size, size.entries - begun.entries) and self._is_shown(owner, key[1]):
                one = Kept(type(owner).__name__, key[1], self._split, size.entries)
                same = [old for old in self.epochs if old[:3] == one[:3]]
                found[one] = 1 + max((self.epochs[old] for old in same), default=0)
        self.epochs, self._ended, self._batches = found, ended, 0

    def _gains(self, size: _Size, gain: int) -> bool:
        if size.is_of_arrays:
            return gain >= self._batches
        return self._split == "validation" and gain >= _SCALARS * self._batches

    def _sizes(
        self, trainer: Trainer, module: LightningModule
    ) -> Iterator[tuple[Any, tuple[int, str], _Size]]:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for owner in (module, *callbacks):
            if _is_of_library(type(owner)):
                continue
            named = {**vars(owner), **getattr(owner, "_buffers", {})}
            for name, value in named.items():
                if not name.startswith("__") and (size := _size(value)) is not None:
                    yield owner, (id(owner), name), size

    def _is_shown(self, owner: Any, name: str) -> bool:
        """Say whether a hook at the end of the epoch reads an attribute and shows something."""
        kind = type(owner)
        if kind not in self._shown:
            codes = list(_codes_behind(kind, _HOOKS[self._split]))
            is_shown = any(name in _SHOWS for code in codes for name in code.co_names)
            learnt = {x for code in _codes_behind(kind, _TRAINS) for x in read_by(code)}
            read = {x for code in codes for x in read_by(code)}
            self._shown[kind] = read - learnt if is_shown else set()
        return name in self._shown[kind]


def _codes_behind(kind: type, hooks: tuple[str, ...]) -> Iterator[CodeType]:
    """Yield the codes of hooks of a class, and of the methods that they call."""
    waiting, seen = list(hooks), set(hooks)
    while waiting:
        method = waiting.pop()
        for code in codes_of(kind, method.__eq__):
            yield code
            names = set(code.co_names) - seen
            new = [name for name in names if callable(getattr(kind, name, None))]
            waiting += new
            seen.update(new)


def _is_of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in (*_LIBRARIES, "lightning_practices")


def _size(value: Any) -> _Size | None:
    """Return the number of entries of a container that can grow without a bound."""
    if isinstance(value, Tensor | np.ndarray):
        return _Size(len(value), value.ndim > 1) if value.ndim else None
    if isinstance(value, dict):
        parts = [size for x in value.values() if isinstance(x, list) and (size := _size(x))]
        return _Size(sum(x.entries for x in parts), any(x.is_of_arrays for x in parts))
    if isinstance(value, list) or (isinstance(value, deque) and value.maxlen is None):
        return _Size(len(value), bool(value) and _has_array(value[-1]))
    return None


def _has_array(entry: Any) -> bool:
    if isinstance(entry, Tensor | np.ndarray):
        return bool(entry.ndim)
    parts = entry.values() if isinstance(entry, dict) else entry
    return isinstance(entry, dict | tuple | list) and any(_has_array(x) for x in parts)
