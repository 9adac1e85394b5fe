"""Class labels of samples."""

from torch import Tensor

from lightning_practices.advisor._entries import Entry, entries, is_as_loaded, targets_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._trace import CLASSES


def class_targets(seen: Observation) -> list[Entry]:
    """Return the targets from the batch that hold one whole number a sample, of a class.

    These are the targets of cross entropy of shape (N), and those of binary cross entropy of shape
    (N) or (N, 1).
    """
    found = []
    for loss, entry in targets_of(seen):
        if entry.source is None:
            continue
        shapes = [x.shape[1:].numel() if x.dim() else 0 for x in entry.tensors]
        is_classes = loss.kind in CLASSES and all(x.dim() == 1 for x in entry.tensors)
        is_binary = loss.kind in ("bce", "bce_logits") and set(shapes) == {1}
        is_binary &= all(bool(((x == 0) | (x == 1)).all()) for x in entry.tensors)
        is_batch = len(entry.tensors[0]) == _length(seen) if entry.tensors[0].dim() else False
        if (is_classes or is_binary) and is_batch:
            found.append(entry)
    return found


def all_labels(seen: Observation, entry: Entry, even_if_weighted: bool = False) -> Tensor | None:
    """Return a target's values over the train samples, flat, beyond the batches that were read.

    ``None`` if they can't be known: the sampler weights the samples, hooks change the target, or
    the dataset has no index.
    """
    samples = seen.train.samples
    if samples is None or entry.source is None or not is_as_loaded(seen.train, entry.source):
        return None
    if not samples.is_uniform and not even_if_weighted:
        return None
    found = samples.labels(entry.source)
    return found.flatten() if found is not None else None


def _length(seen: Observation) -> int:
    """Return the number of samples of the first batch, by the tensor with the most dimensions."""
    lengths = [
        len(x) for source in _sources(seen) for x in entries(seen.train, source)[:1] if x.dim()
    ]
    return max(lengths, default=0)


def _sources(seen: Observation) -> list[str]:
    found = {x.source or "" for call in seen.step.calls for x in call.inputs}
    return sorted(source for source in found if source.startswith("batch"))
