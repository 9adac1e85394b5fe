"""Read the tensors to fit from whatever brings batches: the one entry of each batch, checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_practices._arguments import shown
from lightning_practices._ranks import gathered, rank
from lightning_practices.data._entries import Entry, item_of

_PIECE = 1 << 18  # elements that are converted to float64 at once
_ROWS = 256  # of a batch of a Dataset


def tensor_of(batch: Any, entry: Entry) -> Tensor:
    """Return one tensor of a batch: the batch itself, an item of a tuple, or a value of a dict.

    Raises:
        KeyError: If a dict doesn't have the key.
        IndexError: If a tuple or list is too short.
        TypeError: If the entry is no tensor of real numbers.
    """
    found = item_of(batch, entry)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"entry {entry!r} of a batch has to be a tensor, but got a {type(found).__name__},"
            f" {shown(found)}: convert samples to tensors in the dataset; images of different sizes"
            " have to be resized there"
        )
    if found.is_complex():
        raise TypeError(
            f"entry {entry!r} of a batch has to be of real numbers, but is of {found.dtype}"
        )
    return found


def batches_of(data: Any) -> Iterable[Any]:
    """Return the batches of a tensor, a dataset, or an iterable of batches.

    Raises:
        TypeError: If ``data`` is none of these.
    """
    if isinstance(data, Tensor):
        return [data]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=_ROWS)
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise TypeError(
            "data has to be a tensor whose first dimension is the samples, a Dataset, or an"
            f" iterable of batches such as a DataLoader, but got {shown(data)}"
        )
    return data


def tensors(data: Any, entry: Entry, shown_as: str | None) -> Iterator[Tensor]:
    """Yield the tensors to fit, in pieces that are converted to float64 at little cost.

    Args:
        data: See :func:`batches_of`.
        entry: Which tensor of a batch.
        shown_as: Text of the progress bar; ``None`` for no bar.

    Raises:
        ValueError: If a value is nan or infinite.
    """
    batches = batches_of(data)
    if shown_as is not None:
        batches = with_progress(batches, shown_as)
    seen = 0
    for number, batch in enumerate(batches):
        x = tensor_of(batch, entry).detach()
        if x.dim() == 0:
            raise ValueError(f"batch {number} has a number without dimensions in entry {entry!r}")
        if x.numel():
            per_sample = x[0].numel()
            for first, piece in _pieces(x, max(1, _PIECE // per_sample)):
                _check_finite(piece, number, first, seen)
                yield piece.cpu()
        seen += len(x)


def _pieces(x: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(x), rows):
        yield first, x[first : first + rows]


def _check_finite(x: Tensor, batch: int, first: int, seen: int) -> None:
    if not x.is_floating_point() or bool(x.sum().isfinite()):
        return  # one nan or infinite value makes the sum so
    wrong = ~x.isfinite()
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        row = first + place[0]
        where = f", at {tuple(place[1:])} of it" if place[1:] else ""
        raise ValueError(
            f"the data hold {float(x[tuple(place)])} in sample {seen + row} (row {row} of batch"
            f" {batch}){where}; {int(wrong.sum())} values of this batch are nan or infinite: leave"
            " such samples out, or fill the gaps before"
        )


def with_progress(batches: Iterable[Any], text: str) -> Iterable[Any]:
    """Return the batches, with a progress bar if rank 0 writes to a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or rank() != 0:
        return batches
    total = None
    with suppress(TypeError, NotImplementedError):  # the length isn't known
        total = len(batches)  # type: ignore[arg-type]
    return track(batches, text, total, transient=True, console=console)


def on_all_ranks(function: Callable[[], Any]) -> list[Any]:
    """Return the values of a function on all ranks. If it raises on one of them, all raise.

    Raises:
        RuntimeError: On the ranks that did not raise, if another did.
    """
    value, error = None, None
    try:
        value = function()
    except Exception as raised:
        error = raised
    text = None if error is None else f"{type(error).__name__}: {error}"
    results = gathered((value, text))
    if error is not None:
        raise error
    for number, (_, text) in enumerate(results):
        if text is not None:
            raise RuntimeError(f"rank {number} raised {text}")
    return [value for value, _ in results]
