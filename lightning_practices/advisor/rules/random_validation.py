"""Validation data that isn't the same in each epoch, or that is shuffled."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_practices.advisor._entries import targets_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._samples import Samples, digest, entry_of
from lightning_practices.advisor._trace import CLASSES

_SAMPLES = 4  # that are read twice
_DEPTH = 4  # of transforms within transforms
_CLASSIFICATION = CLASSES | {"bce", "bce_logits"}


@rule(
    "LP314", "warning",
    practice="Validation data isn't augmented",
    measures="two readings of the same labelled validation sample, whose dataset has random"
    " transforms or shares them with the train split",
    healthy="equal",
    source="reports of a validation split by random_split that keeps the augmentation of training",
)  # fmt: skip
def augmented_validation(seen: Observation) -> Iterator[Evidence]:
    samples = _random_samples(seen)
    if samples is None or not _is_labelled(seen, samples):
        return
    found = sorted(_random_transforms(samples.dataset))
    train = seen.train.samples
    is_shared = train is not None and samples.is_selected and train.dataset is samples.dataset
    if found or is_shared:
        names = f" by {', '.join(found)}" if found else ""
        shared = ", with the transforms of the train split" if is_shared else ""
        yield Evidence(
            f"two readings of the same validation sample differ: it is augmented at random{names}"
            f"{shared}. The validation metric is noisy and of another distribution",
            "give the validation split a dataset of its own, without random transforms",
        )


@rule(
    "LP315", "hint",
    practice="Validation data is the same in each epoch",
    measures="two readings of the same validation sample",
    healthy="equal, or random on purpose: noise, views, samples made on the fly",
    source="lecture notes of deep learning: compare epochs on the same data",
)  # fmt: skip
def random_validation(seen: Observation) -> Iterator[Evidence]:
    if _random_samples(seen) is not None and not augmented_validation.findings(seen):
        yield Evidence(
            "two readings of the same validation sample differ: the metric changes by chance from"
            " epoch to epoch",
            "draw from a generator seeded by the index: torch.Generator().manual_seed(index)",
        )


@rule(
    "LP316", "hint",
    practice="Validation data isn't shuffled",
    measures="the sampler of the validation loader",
    healthy="in order",
    source="lightning.pytorch: it is strongly recommended that shuffling is turned off",
)  # fmt: skip
def shuffled_validation(seen: Observation) -> Iterator[Evidence]:
    samples = seen.validation.samples if seen.validation is not None else None
    if samples is not None and samples.is_shuffled:
        yield Evidence(
            "the validation loader shuffles: batches differ from epoch to epoch, and so do metrics"
            " that are means over batches",
            "DataLoader(val_dataset, shuffle=False)",
        )


def _random_samples(seen: Observation) -> Samples | None:
    """Return the validation samples if two readings differ."""
    samples = seen.validation.samples if seen.validation is not None else None
    if samples is None:
        return None
    places = samples.spread(_SAMPLES)
    read = samples.read(torch.cat([places, places]))
    if len(read) < 2 * len(places):
        return None
    first, second = read[: len(places)], read[len(places) :]
    digests = [(digest(a), digest(b)) for a, b in zip(first, second, strict=True)]
    return samples if any(a is not None and b is not None and a != b for a, b in digests) else None


def _is_labelled(seen: Observation, samples: Samples) -> bool:
    """Whether a classification loss gets an entry of the samples that two readings share."""
    place = samples.spread(1)
    first, second = samples.read(torch.cat([place, place]))
    for loss, entry in targets_of(seen):
        if loss.kind in _CLASSIFICATION and entry.source is not None:
            labels = [entry_of(one, entry.source) for one in (first, second)]
            if None not in labels and digest(labels[0]) == digest(labels[1]):
                return True
    return False


def _random_transforms(owner: Any, depth: int = _DEPTH) -> set[str]:
    """Return the classes of random transforms within a dataset."""
    found: set[str] = set()
    if depth == 0 or isinstance(owner, str | bytes | int | float | Tensor):
        return found
    name = type(owner).__name__
    if name.startswith(("Random", "AutoAugment", "RandAugment", "TrivialAugment", "ColorJitter")):
        found.add(name)
    parts = list(vars(owner).values()) if hasattr(owner, "__dict__") else []
    parts = list(owner) if isinstance(owner, list | tuple) and len(owner) <= 64 else parts
    for part in parts:
        if callable(part) or isinstance(part, list | tuple) or hasattr(part, "transforms"):
            found |= _random_transforms(part, depth - 1)
    return found
