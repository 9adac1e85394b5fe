"""A weighted sampler that has a weight for each class, not for each sample."""

from collections.abc import Iterator

from torch.utils.data import WeightedRandomSampler

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP344", "error",
    practice="A weighted sampler has a weight for each sample",
    measures="the number of weights and of samples",
    healthy="equal",
    source="questions on forums about WeightedRandomSampler with the weights of the classes",
)  # fmt: skip
def weights_of_classes_in_sampler(seen: Observation) -> Iterator[Evidence]:
    for loader in seen.train.loaders:
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        if not isinstance(sampler, WeightedRandomSampler) or not hasattr(loader.dataset, "__len__"):
            continue
        weights, samples = len(sampler.weights), len(loader.dataset)
        if weights < samples:
            yield Evidence(
                f"the sampler has {weights} weights for {samples} samples, and draws the first"
                f" {weights} samples alone",
                "WeightedRandomSampler(class_weights[labels], len(labels)), with the label of each"
                " sample",
                numbers={"weights": weights, "samples": samples},
            )
