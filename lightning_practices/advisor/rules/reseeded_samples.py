"""A dataset that sets the seed of a global generator while it is read."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from lightning_practices._random_states import random_states
from lightning_practices._seeds import seed_generators
from lightning_practices.advisor._isolation import isolated
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._samples import Samples

_SEEDS = (17, 23, 29)
_FUNCTIONS = {"torch": "torch.manual_seed", "numpy": "numpy.random.seed", "python": "random.seed"}


@rule(
    "LP345", "warning",
    practice="Samples are augmented anew in each epoch",
    measures="the state of each global generator after readings of different samples from different"
    " seeds",
    healthy="different; equal states where the seed is drawn at random, or is the sample's index",
    source="questions on forums about augmentations that repeat, and about worker_init_fn",
)  # fmt: skip
def reseeded_samples(seen: Observation) -> Iterator[Evidence]:
    samples = seen.train.samples
    if samples is None or len(samples) < len(_SEEDS):
        return
    places = samples.spread(len(_SEEDS)).tolist()
    pairs = zip(places, _SEEDS, strict=True)
    first, *others = [_states_after(samples, place, seed) for place, seed in pairs]
    for name, function in _FUNCTIONS.items():
        if all(_are_equal(first[name], one[name]) for one in others):
            yield Evidence(
                f"reading a sample sets the global generator of {name} to the same state whatever"
                " the sample and the seed: each sample and each epoch gets the same random numbers,"
                " and so does what the fit draws after it, such as dropout",
                f"leave out {function}(...) in the dataset and its transforms: seed once, by"
                " seed_everything(seed, workers=True)",
            )


def _states_after(samples: Samples, place: int, seed: int) -> dict[str, Any]:
    """Read a sample from a seed, and return the states of the global generators afterwards."""
    with isolated(samples.loader):
        seed_generators(seed)
        samples.dataset[place]
        return random_states([])


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    if isinstance(a, Tensor):
        return bool((a == b).all())
    return bool(np.all(a == b))
